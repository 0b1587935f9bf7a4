"""Verdicts: edge cases by hand, and the error rates that they promise by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Comparison, Verdict, compare, estimate_scores
from bakeoff.analysis.pareto import pareto_front

ONE = (0,)
THREE = (0, 1, 2)


def repeat(row: object, seeds: tuple[int, ...] = THREE) -> Scores:
    return Scores(seeds, np.tile(np.array(row, dtype=np.float64), (len(seeds), 1)))


def against(
    method: Scores, control: Scores, margin: float = 0.01, better: str = "higher"
) -> Comparison:
    rng = np.random.default_rng(0)
    return compare({"m": method}, control, margin=margin, better=better, rng=rng)["m"]


HALF = repeat([1.0, 0.0] * 100)


@pytest.mark.parametrize("margin", [0.0, 0.01])
@pytest.mark.parametrize("seeds", [ONE, THREE])
def test_identical_scores_are_equivalent(margin: float, seeds: tuple[int, ...]) -> None:
    same = repeat([1.0, 0.0] * 20, seeds)
    found = against(same, same, margin)
    assert found.verdict is Verdict.EQUIVALENT
    assert found.p_adjusted == 1.0
    assert (found.difference.estimate, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.seed_noise_known is (len(seeds) > 1)


@pytest.mark.parametrize(
    ("shift", "better", "verdict"),
    [
        (0.1, "higher", Verdict.BETTER),
        (-0.1, "higher", Verdict.WORSE),
        (0.1, "lower", Verdict.WORSE),
        (-0.1, "lower", Verdict.BETTER),
        (0.005, "higher", Verdict.EQUIVALENT),
        (-0.005, "lower", Verdict.EQUIVALENT),
        (0.01, "higher", Verdict.BETTER),
    ],
)
def test_a_constant_difference(shift: float, better: str, verdict: Verdict) -> None:
    found = against(Scores(THREE, HALF.values + shift), HALF, 0.01, better)
    assert found.verdict is verdict
    # the sign is that of method - control, whatever the direction of the metric
    assert found.difference.estimate == pytest.approx(shift)
    assert found.difference.low == pytest.approx(shift)
    assert found.difference.high == pytest.approx(shift)
    assert found.p_value == pytest.approx(2 / 10_001)


def test_few_discordant_items_are_inconclusive() -> None:
    found = against(repeat([1.0] * 4 + [0.0] + [1.0, 0.0] * 97 + [0.0]), HALF)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.difference.low < found.difference.estimate < found.difference.high


def test_clear_gain_by_the_normal_approximation() -> None:
    # 40 of 200 items gained, none lost: standard error sqrt(.2 * .8 / 199)
    gained = np.array([1.0, 0.0] * 100)
    gained[1:80:2] = 1.0
    found = against(repeat(gained), HALF)
    width = 1.96 * np.sqrt(0.2 * 0.8 / 199)
    assert found.verdict is Verdict.BETTER
    assert found.difference.estimate == pytest.approx(0.2)
    assert found.difference.low == pytest.approx(0.2 - width, abs=0.006)
    assert found.difference.high == pytest.approx(0.2 + width, abs=0.006)


def test_more_contenders_widen_intervals_and_raise_p() -> None:
    rng = np.random.default_rng(2)
    control = Scores(ONE, rng.normal(size=(1, 200)))
    contenders = {
        f"m{i}": Scores(ONE, control.values + rng.normal(0.02 * i, 0.3, (1, 200))) for i in range(5)
    }
    rng = np.random.default_rng(0)
    many = compare(contenders, control, margin=0.01, better="higher", rng=rng)
    alone = against(contenders["m4"], control)
    wide = many["m4"].difference.high - many["m4"].difference.low
    ratio = wide / (alone.difference.high - alone.difference.low)
    assert ratio == pytest.approx(stats.norm.ppf(1 - 0.005) / stats.norm.ppf(0.975), rel=0.05)
    ordered = sorted(many.values(), key=lambda c: c.p_value)
    # Holm by hand: p times (5, 4, 3, 2, 1), never falling, at most 1
    running = 0.0
    for rank, found in enumerate(ordered):
        running = min(1.0, max(running, found.p_value * (5 - rank)))
        assert found.p_adjusted == pytest.approx(running)


def test_equivalence_needs_both_sides() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.05, (1, 400))
    control = Scores(ONE, np.zeros((1, 400)))
    inside = Scores(ONE, noise - noise.mean() + 0.002)
    assert against(inside, control, 0.01).verdict is Verdict.EQUIVALENT
    at_margin = Scores(ONE, noise - noise.mean() + 0.0095)
    assert against(at_margin, control, 0.01).verdict is Verdict.BETTER
    assert against(inside, control, 0.003).verdict is Verdict.INCONCLUSIVE


def test_no_contenders_and_no_scores_give_nothing() -> None:
    rng = np.random.default_rng(0)
    assert compare({}, HALF, margin=0.01, better="higher", rng=rng) == {}
    assert estimate_scores({}, rng) == {}


def test_score_interval_stays_in_the_metrics_range() -> None:
    rng = np.random.default_rng(0)
    found = estimate_scores({"m": repeat([1.0] * 28 + [0.0], ONE)}, rng, low=0.0, high=1.0)["m"]
    assert found.estimate == pytest.approx(28 / 29)
    assert found.low < found.estimate
    assert found.high == 1.0


def test_pareto_front_keeps_ties_and_leaves_out_what_is_unknown() -> None:
    scores = {"a": 0.8, "tie": 0.8, "bad": 0.7, "top": 0.9, "free": None, "unknown": 1.0}
    costs = {"a": 10.0, "tie": 10.0, "bad": 20.0, "top": 30.0, "free": 1.0, "unknown": None}
    assert pareto_front(scores, costs, better="higher") == ["a", "tie", "top"]
    assert pareto_front(scores, costs, better="lower") == ["a", "tie", "bad"]
    assert pareto_front({"a": None}, {"a": 1.0}, better="higher") == []


def study(rng: np.random.Generator, n_methods: int, gains: np.ndarray) -> np.ndarray:
    """Draw right/wrong ``[methods, seeds, items]``; near 80 % right, seed SD 0.6 points.

    Items differ in difficulty, shared by all methods; each method has its own taste in items.
    """
    items = rng.normal(size=300)
    taste = 0.4 * rng.normal(size=(n_methods, 1, 300))
    luck = 0.0255 * rng.normal(size=(n_methods, 3, 1))
    noise = 0.5 * rng.normal(size=(n_methods, 3, 300))
    return np.asarray(1.0 + gains[:, None, None] + items + taste + luck + noise > 0, dtype=float)


@pytest.fixture
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    # statsmodels collects garbage in every call of multipletests: most of a simulation's time
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.mark.usefixtures("no_collection")
def test_error_rates_hold() -> None:
    """Family-wise false verdicts <= 5 % under the null; intervals cover the truth."""
    rng = np.random.default_rng(11)
    gains = np.zeros(6)
    n_studies, families, covered, means_covered = 150, 0, [], []
    spread = np.sqrt(1 + 0.4**2 + 0.5**2 + 0.0255**2)
    truth = stats.norm.cdf(1.0 / spread)
    for _ in range(n_studies):
        drawn = [Scores(THREE, values) for values in study(rng, 6, gains)]
        named = {f"m{i}": s for i, s in enumerate(drawn[1:])}
        found = compare(named, drawn[0], margin=0.01, better="higher", rng=rng, draws=2_000)
        families += any(c.verdict in (Verdict.BETTER, Verdict.WORSE) for c in found.values())
        covered.append(all(c.difference.low <= 0 <= c.difference.high for c in found.values()))
        means = estimate_scores(named, rng, draws=2_000)
        means_covered += [m.low <= truth <= m.high for m in means.values()]
    error = 2 * np.sqrt(0.05 * 0.95 / n_studies)
    assert families / n_studies <= 0.05 + error
    assert np.mean(covered) >= 0.93
    assert np.mean(means_covered) >= 0.93


@pytest.mark.usefixtures("no_collection")
def test_a_real_gain_is_found_and_covered() -> None:
    rng = np.random.default_rng(12)
    gains = np.array([0.0, 0.6, -0.6])
    spread = np.sqrt(1 + 0.4**2 + 0.5**2 + 0.0255**2)
    truth = stats.norm.cdf((1.0 + gains) / spread)
    hits, covered = [], []
    for _ in range(60):
        drawn = [Scores(THREE, values) for values in study(rng, 3, gains)]
        named = {"up": drawn[1], "down": drawn[2]}
        found = compare(named, drawn[0], margin=0.01, better="higher", rng=rng, draws=2_000)
        hits += [found["up"].verdict is Verdict.BETTER, found["down"].verdict is Verdict.WORSE]
        for i, one in enumerate(found.values(), start=1):
            covered.append(one.difference.low <= truth[i] - truth[0] <= one.difference.high)
    assert np.mean(hits) > 0.9
    assert np.mean(covered) >= 0.93
