"""The set of methods that may be the best: by hand, and how often it holds the best."""

from __future__ import annotations

import numpy as np
import pytest

from bakeoff.analysis.bootstrap import Scores, bootstrap, difference_effect, pool_seed_noise
from bakeoff.analysis.confidence_set import better_probabilities, confidence_set


def test_equal_methods_stay() -> None:
    draws = dict(zip("abc", np.random.default_rng(0).standard_normal((3, 4000)), strict=True))
    assert confidence_set(draws, better="higher") == ("a", "b", "c")


@pytest.mark.parametrize(("better", "best"), [("higher", ("a", "b")), ("lower", ("d",))])
def test_worse_methods_are_eliminated_one_by_one(better: str, best: tuple[str, ...]) -> None:
    """a and b are a third of an error apart, c and d many errors below and apart."""
    noise = np.random.default_rng(1).standard_normal((4, 4000))
    draws = dict(zip("abcd", noise + np.array([0.0, -0.5, -20.0, -40.0])[:, None], strict=True))
    assert confidence_set(draws, better=better) == best


def test_two_methods_by_the_normal_distribution() -> None:
    """Of two methods the worse leaves where the difference passes 1.96 errors on either side."""
    noise = np.random.default_rng(2).standard_normal(100_000)
    for distance, kept in ((1.9, ("a", "b")), (2.05, ("b",))):
        assert confidence_set({"a": noise - distance, "b": 0 * noise}, better="higher") == kept


def test_no_variance() -> None:
    """Without any variance a difference is certain, and equal methods stay."""
    flat = np.zeros(1000)
    draws = {"a": flat, "b": flat, "c": flat - 0.1}
    assert confidence_set(draws, better="higher") == ("a", "b")
    assert confidence_set({"a": flat}, better="higher") == ("a",)
    assert confidence_set({}, better="higher") == ()


def test_order_changes_nothing() -> None:
    noise = np.random.default_rng(3).standard_normal((5, 2000)) * 0.25
    draws = {f"m{i}": row - 0.3 * i for i, row in enumerate(noise)}
    turned = dict(reversed(draws.items()))
    found = confidence_set(draws, better="higher")
    assert set(confidence_set(turned, better="higher")) == set(found)
    assert 1 < len(found) < 5


def test_better_probabilities() -> None:
    """Three of four draws above, one tied: 3 of 4 and a half."""
    draws = {"a": np.array([1.0, 1.0, 1.0, 0.0]), "b": np.zeros(4)}
    found = better_probabilities(draws, better="higher")
    assert found == {"a": {"b": 0.875}, "b": {"a": 0.125}}
    assert better_probabilities(draws, better="lower")["b"]["a"] == 0.875


@pytest.mark.parametrize("gaps", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, -0.03, -0.06)])
def test_set_holds_all_that_are_best(gaps: tuple[float, ...]) -> None:
    """In 95 % of studies none of the methods that are truly best is eliminated."""
    rng, held, studies = np.random.default_rng(4), 0, 200
    for _ in range(studies):
        item = 0.1 * rng.standard_normal(100)
        values = {
            f"m{i}": gap
            + item
            + 0.1 * rng.standard_normal(100)
            + 0.02 * rng.standard_normal((5, 1))
            + 0.05 * rng.standard_normal((5, 100))
            for i, gap in enumerate(gaps)
        }
        scores = [Scores(tuple(range(5)), rows) for rows in values.values()]
        effects = pool_seed_noise([difference_effect(s, scores[0]) for s in scores[1:]])
        drawn = [np.zeros(1000), *bootstrap(effects, rng, 1000)]
        found = confidence_set(dict(zip(values, drawn, strict=True)), better="higher")
        held += all(method in found for method, gap in zip(values, gaps, strict=True) if gap == 0)
    # at a true 95 %, fewer than 182 of 200 have a probability of 1 %
    assert held >= 182
