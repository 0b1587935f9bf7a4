"""Items in groups, in every interval and test: effects, verdicts, learning, secondary metrics."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.records import make_record

from bakeoff.analysis.bootstrap import (
    Effect,
    Scores,
    bootstrap,
    difference_effect,
    mean_effect,
    standardised_deviations,
    variance_components,
)
from bakeoff.analysis.compare import Verdict, compare, estimate_scores
from bakeoff.analysis.error_distribution import half_width, z_score
from bakeoff.analysis.group_variance import IntArray, group_df, group_variance, group_variances
from bakeoff.analysis.item_groups import groups_section
from bakeoff.analysis.learning import Baseline, assess_learning
from bakeoff.analysis.pareto import draw_scores
from bakeoff.analysis.trial_runs import item_groups
from bakeoff.core.errors import BakeoffError
from bakeoff.core.record import MetricInfo

SEEDS = (1, 2, 3)
SIZES = [2, 4, 6, 8, 10] * 4
ACCURACY = MetricInfo("accuracy", "higher", "share", 0.0, 1.0)


def labels() -> IntArray:
    return np.repeat(np.arange(20), SIZES)


def grouped(rng: np.random.Generator, icc: float = 0.6, seeds: tuple[int, ...] = SEEDS) -> Scores:
    """Return scores whose items agree within a group."""
    shared = np.sqrt(icc) * rng.normal(size=20)[labels()]
    noise = np.sqrt(1 - icc) * rng.normal(size=(len(seeds), sum(SIZES)))
    return Scores(seeds, shared + noise, labels())


def without_groups(scores: Scores) -> Scores:
    return Scores(scores.seeds, scores.values)


def test_variance_and_freedom_are_those_of_the_groups() -> None:
    rng = np.random.default_rng(0)
    one, other = grouped(rng), grouped(rng)
    effect = difference_effect(one, other)
    paired = one.values - other.values
    means = paired.mean(axis=0)
    rest = paired - paired.mean(axis=1, keepdims=True) - means + means.mean()
    assert effect.n_items == sum(SIZES)
    assert effect.item_variance == pytest.approx(group_variance(means - means.mean(), labels()))
    assert effect.seeds[0].noise == pytest.approx(group_variances(rest, labels()).sum() / 2 / 3)
    assert effect.item_df == pytest.approx(group_df(labels(), sum(SIZES)))
    assert variance_components([effect]).item_df[0] == effect.item_df


def test_groups_of_one_item_are_no_groups() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 40))
    plain = mean_effect(Scores(SEEDS, values))
    own = mean_effect(Scores(SEEDS, values, rng.permutation(40)))
    for name in ("estimate", "item_variance", "seed_variance", "item_df", "effective_items"):
        assert getattr(own, name) == pytest.approx(getattr(plain, name)), name
    assert own.seeds[0].noise == pytest.approx(plain.seeds[0].noise)


def test_draws_have_the_variance_and_correlation_of_the_groups() -> None:
    """The draws of two contenders correlate as the sums of their groups do."""
    rng = np.random.default_rng(2)
    control = grouped(rng, seeds=(1,))
    effects = [difference_effect(grouped(rng, seeds=(1,)), control) for _ in range(2)]
    sums = np.stack([e.item_deviations for e in effects])
    expected = sums[0] @ sums[1] / np.sqrt((sums[0] @ sums[0]) * (sums[1] @ sums[1]))
    drawn = standardised_deviations(effects, np.random.default_rng(3), 40_000)
    assert drawn.std(axis=1) == pytest.approx([1, 1], abs=0.02)
    assert np.corrcoef(drawn)[0, 1] == pytest.approx(expected, abs=0.02)


def test_draws_have_the_tails_of_few_groups() -> None:
    """Intervals from draws are as wide as those of Student's t on the groups' freedom."""
    rng = np.random.default_rng(4)
    few = np.repeat(np.arange(5), 8)
    scores = Scores((1,), rng.normal(size=(1, 40)), few)
    effect = mean_effect(scores)
    low, high = np.quantile(bootstrap([effect], rng, 200_000)[0], [0.025, 0.975])
    assert (high - low) / 2 == pytest.approx(
        half_width(1.96, variance_components([effect]))[0], rel=0.02
    )


def test_false_differences_by_group_and_as_independent_items() -> None:
    """No difference, items of 20 groups that agree: 5 % by group, far more without."""
    rng = np.random.default_rng(5)
    effects: dict[str, list[Effect]] = {"groups": [], "items": []}
    for _ in range(600):
        one, control = grouped(rng), grouped(rng)
        effects["groups"].append(difference_effect(one, control))
        effects["items"].append(difference_effect(without_groups(one), without_groups(control)))
    wrong = {}
    for name, known in effects.items():
        distance = np.abs([e.estimate for e in known])
        wrong[name] = np.mean(z_score(distance, variance_components(known)) > 1.96)
    assert wrong["groups"] < 0.07
    assert wrong["items"] > 0.25


def test_equivalence_needs_many_groups_where_hardly_an_item_differs() -> None:
    """Two of 400 items differ: enough to be equivalent, but not if they are of 20 groups."""
    control = np.ones((1, 400))
    method = control.copy()
    method[0, [3, 200]] = 0
    groups = np.repeat(np.arange(20), 20)

    def verdict(numbers: IntArray | None) -> Verdict:
        scores = {"m": Scores((1,), method, numbers)}
        rng = np.random.default_rng(0)
        return compare(
            scores, Scores((1,), control, numbers), margin=0.02, better="higher", rng=rng
        )["m"].verdict

    assert verdict(None) is Verdict.EQUIVALENT
    assert verdict(groups) is Verdict.INCONCLUSIVE


def test_estimates_and_front_draws_are_wider_by_group() -> None:
    rng = np.random.default_rng(6)
    scores = {m: grouped(rng) for m in ("control", "m")}
    plain = {m: without_groups(s) for m, s in scores.items()}
    by_group = estimate_scores(scores, np.random.default_rng(0))["m"]
    by_item = estimate_scores(plain, np.random.default_rng(0))["m"]
    assert by_group.high - by_group.low > 1.3 * (by_item.high - by_item.low)
    spread = [
        draw_scores(s, "control", np.random.default_rng(0))["m"].std() for s in (scores, plain)
    ]
    assert spread[0] > 1.3 * spread[1]


def test_learning_counts_a_group_once() -> None:
    """Twelve gained items are sure evidence, but not if they are of two groups of forty."""
    values = np.zeros((1, 240))
    values[0, :12] = 1
    groups = np.repeat(np.arange(40), 6)
    baseline = [Baseline("base", np.zeros(240))]

    def learnt(numbers: IntArray | None) -> bool:
        scores = {"m": Scores((1,), values, numbers)}
        return assess_learning(scores, baseline, ACCURACY, np.random.default_rng(0))["m"].learnt

    assert learnt(None)
    assert not learnt(groups)


def test_groups_of_another_shape_or_a_single_one_are_refused() -> None:
    values = np.zeros((1, 4))
    for groups in (np.zeros(4, dtype=np.int64), np.arange(3), np.arange(4)[None]):
        with pytest.raises(BakeoffError, match="scores-groups"):
            Scores((1,), values, groups)


def test_methods_in_different_groups_are_refused() -> None:
    one = Scores((1,), np.zeros((1, 4)), np.array([0, 0, 1, 1]))
    for groups in (None, np.array([0, 1, 0, 1])):
        with pytest.raises(BakeoffError, match="scores-groups"):
            difference_effect(one, Scores((1,), np.zeros((1, 4)), groups))


def test_report_says_how_many_groups_and_their_design_effect() -> None:
    """Whole groups differ: of 12 pairs, so the variance is twice that of independent items."""
    gains = np.repeat([1.0, 0.0, 0.0] * 4, 2)
    known = {
        "lora": Scores((1,), np.zeros((1, 24)), np.repeat(np.arange(12), 2)),
        "oft": Scores((1,), gains[None], np.repeat(np.arange(12), 2)),
    }
    groups = tuple(int(g) for g in np.repeat(np.arange(12), 2))
    record = make_record((), ("lora", "oft"), groups=groups, group_source="column 'g'")
    section = groups_section(record, known)
    assert section == {"source": "column 'g'", "n": 12, "design_effect": pytest.approx(23 / 11)}
    assert groups_section(record, {})["design_effect"] is None
    assert groups_section(make_record((), ("lora",)), known) is None
    assert list(item_groups(record, 24)) == list(groups)
    assert item_groups(record, 23) is None
