"""Verdicts: edge cases by hand, and the error rates that they promise by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

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
def test_constant_difference_has_no_noise(shift: float, better: str, verdict: Verdict) -> None:
    """A constant difference has no noise."""
    found = against(Scores(THREE, HALF.values + shift), HALF, 0.01, better)
    assert found.verdict is verdict
    # the sign is that of method - control, whatever the direction of the metric
    assert found.difference.estimate == pytest.approx(shift)
    assert found.difference.low == pytest.approx(shift)
    assert found.difference.high == pytest.approx(shift)
    assert found.p_value == pytest.approx(1 / 10_001)


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


def test_multiplicity_widens_intervals() -> None:
    """More contenders widen the intervals and raise the p values."""
    many, alone = five_contenders(), five_contenders(("m4",))
    wide = many["m4"].difference.high - many["m4"].difference.low
    ratio = wide / (alone["m4"].difference.high - alone["m4"].difference.low)
    # independent contenders here: Sidak's score, a little below Bonferroni's
    sidak = stats.norm.ppf((1 + 0.95 ** (1 / 5)) / 2)
    assert ratio == pytest.approx(sidak / stats.norm.ppf(0.975), rel=0.02)
    for found in many.values():
        p = 1 - (1 - found.p_value) ** 5
        assert found.p_adjusted == pytest.approx(p, abs=4 * np.sqrt(p / 10_000) + 2e-4)
    # what is left of multiple testing in equivalence is Holm's, by hand
    raw = {name: five_contenders((name,))[name].p_equivalence for name in many}
    running = 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        running = min(1.0, max(running, raw[name] * (5 - rank)))
        assert many[name].p_equivalence == pytest.approx(running)


def five_contenders(names: tuple[str, ...] = ("m0", "m1", "m2", "m3", "m4")) -> dict:
    rng = np.random.default_rng(2)
    control = Scores(ONE, rng.normal(size=(1, 200)))
    made = {
        f"m{i}": Scores(ONE, control.values + rng.normal(0.02 * i, 0.3, (1, 200))) for i in range(5)
    }
    wanted = {name: made[name] for name in names}
    return compare(wanted, control, margin=0.05, better="higher", rng=np.random.default_rng(0))


def test_correlated_contenders_need_no_correction() -> None:
    """Perfectly correlated contenders need no multiplicity correction."""
    rng = np.random.default_rng(5)
    control = Scores(ONE, rng.normal(size=(1, 200)))
    twin = Scores(ONE, control.values + rng.normal(0.1, 0.3, (1, 200)))
    alone = against(twin, control)
    rng = np.random.default_rng(0)
    three = compare(dict.fromkeys("abc", twin), control, margin=0.01, better="higher", rng=rng)
    assert three["a"].difference.low == pytest.approx(alone.difference.low, abs=0.002)
    assert three["a"].p_adjusted == pytest.approx(alone.p_adjusted, abs=0.002)


def test_seed_variance_widens_own_interval() -> None:
    """High seed variance widens only that contender's interval."""
    rng = np.random.default_rng(8)
    control = Scores(THREE, (rng.random((3, 400)) < 0.7).astype(float))
    calm = {f"m{i}": Scores(THREE, (rng.random((3, 400)) < 0.7).astype(float)) for i in range(4)}
    unbounded = Scores((7, 8, 9), control.values + np.array([[-3.0], [0.0], [3.0]]))
    rng = np.random.default_rng(0)
    found = compare({**calm, "wild": unbounded}, control, margin=0.01, better="higher", rng=rng)
    rng = np.random.default_rng(0)
    without = compare(calm, control, margin=0.01, better="higher", rng=rng)
    for name in calm:
        ratio = width(found[name]) / width(without[name])
        assert 1 <= ratio < 1.1
    # t with two degrees of freedom, and more contenders than one: 3 / sqrt(3) * 4.3 at least
    assert width(found["wild"]) / 2 > 7


def width(found: Comparison) -> float:
    return found.difference.high - found.difference.low


def test_verdict_and_interval_always_agree() -> None:
    rng = np.random.default_rng(9)
    seen = set()
    for _ in range(40):
        base = rng.random(60)
        control = Scores(THREE, (base + 0.2 * rng.normal(size=(3, 60)) > 0.5).astype(float))
        made = {
            f"m{i}": Scores(
                THREE, (base + 0.06 * i + 0.2 * rng.normal(size=(3, 60)) > 0.5).astype(float)
            )
            for i in range(4)
        }
        found = compare(made, control, margin=0.0, better="higher", rng=rng, draws=400)
        for one in found.values():
            beyond = not one.difference.low <= 0 <= one.difference.high
            assert (one.verdict in (Verdict.BETTER, Verdict.WORSE)) == beyond
            assert (one.p_adjusted <= 0.05) == beyond
            seen.add(beyond)
    assert seen == {True, False}


def test_same_seed_is_reproducible() -> None:
    """The same seed gives identical bits."""
    assert five_contenders() == five_contenders()


def test_single_contender_matches_t_test() -> None:
    """A single contender with seed variance only gives Student's t interval."""
    # items all agree: the test is scipy's of three differences
    differences = np.array([0.01, 0.03, 0.05])
    control = Scores(THREE, np.tile(np.linspace(0.2, 0.8, 50), (3, 1)))
    found = against(Scores(THREE, control.values + differences[:, None]), control)
    wanted = stats.ttest_1samp(differences, 0.0)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-4)
    low, high = wanted.confidence_interval(0.95)
    # the critical score is the draws' own 95 % point, so that it has their noise
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=0.2)


def test_few_discordant_items_inconclusive() -> None:
    """A few discordant items are no evidence of equivalence."""
    # one of 300 items differs: a method that is a point worse loses at most one in 20 % of studies
    right = np.ones(300)
    lost = right.copy()
    lost[0] = 0.0
    found = against(repeat(lost), repeat(right), 0.01)
    # by hand: (0.01 - 1/300) / sqrt(0.01 * 0.99 / 300) = 1.16
    assert found.p_equivalence == pytest.approx(stats.norm.sf(1.1605), abs=0.002)
    assert found.verdict is Verdict.INCONCLUSIVE
    # a metric that is not binary may have such a difference for certain
    assert against(repeat(lost - 0.5), repeat(right - 0.5), 0.01).verdict is Verdict.EQUIVALENT


def test_required_size_by_hand() -> None:
    """The size that would give a conclusion matches a hand computation."""
    # one seed, 4 % gained and 2 % lost of 1000: SD sqrt(.06 - .0004); 80 % power needs
    # ((1.96 + .8416) * SD / .02)^2 items
    gained = np.zeros(1000)
    control = np.zeros(1000)
    gained[:40], control[40:60] = 1.0, 1.0
    found = against(repeat(gained, ONE), repeat(control, ONE), 0.001)
    assert found.verdict is Verdict.BETTER
    assert (found.items_needed, found.seeds_needed) == (None, None)
    fewer = against(repeat(gained[::2], ONE), repeat(control[::2], ONE), 0.001)
    assert fewer.verdict is Verdict.INCONCLUSIVE
    assert fewer.items_needed == pytest.approx(2.8016**2 * 0.0596 / 0.0004, rel=0.01)
    assert fewer.seeds_needed is None, "one seed: nobody knows what more of them would do"


def test_equivalence_may_be_nearer() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.05, (1, 400))
    control = Scores(ONE, np.zeros((1, 400)))
    found = against(Scores(ONE, noise - noise.mean() + 0.001), control, 0.003)
    sd = noise.std(ddof=1)
    # 80 % power for the nearer bound, 0.002 away; the other one hardly counts
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.items_needed == pytest.approx(((1.645 + 0.8416) * sd / 0.002) ** 2, rel=0.03)


def test_seeds_settle_what_items_cannot() -> None:
    rng = np.random.default_rng(1)
    luck = np.array([[-0.03], [0.0], [0.03]])
    control = Scores(THREE, rng.normal(size=(3, 2000)) * 0.01)
    method = Scores(THREE, control.values + 0.02 + luck)
    found = against(method, control, 0.001)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.items_needed is None
    # a t test of differences with SD 0.03, 80 % power for 0.02: 20 seeds (statsmodels)
    wanted = TTestPower().solve_power(0.02 / 0.03, alpha=0.05, power=0.8)
    assert found.seeds_needed == pytest.approx(wanted, abs=1.01)
    rng = np.random.default_rng(0)
    without = compare({"m": method}, control, margin=0.001, better="higher", rng=rng, needs=False)
    assert without["m"].seeds_needed is None


def test_equivalence_needs_both_sides() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.05, (1, 400))
    control = Scores(ONE, np.zeros((1, 400)))
    inside = Scores(ONE, noise - noise.mean() + 0.002)
    assert against(inside, control, 0.01).verdict is Verdict.EQUIVALENT
    at_margin = Scores(ONE, noise - noise.mean() + 0.0095)
    assert against(at_margin, control, 0.01).verdict is Verdict.BETTER
    assert against(inside, control, 0.003).verdict is Verdict.INCONCLUSIVE


def test_empty_input() -> None:
    """No contenders and no scores give no comparisons."""
    rng = np.random.default_rng(0)
    assert compare({}, HALF, margin=0.01, better="higher", rng=rng) == {}
    assert estimate_scores({}, rng) == {}


def test_score_interval_within_metric_range() -> None:
    """The interval of a score stays within the range of its metric."""
    rng = np.random.default_rng(0)
    found = estimate_scores({"m": repeat([1.0] * 28 + [0.0], ONE)}, rng, low=0.0, high=1.0)["m"]
    assert found.estimate == pytest.approx(28 / 29)
    assert found.low < found.estimate
    assert found.high == 1.0


def test_pareto_front_ties_and_unknowns() -> None:
    """The Pareto front keeps ties and omits methods with unknown values."""
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
def test_real_gain_found_and_covered() -> None:
    """A real gain is detected, and its interval covers the true value."""
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
