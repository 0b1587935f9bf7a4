"""Looks after rounds of replicates: by hand, against scipy, and over cases that end a contender."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Verdict, compare
from bakeoff.analysis.error_distribution import VarianceComponents, half_width, z_score
from bakeoff.analysis.power import dunnett_critical
from bakeoff.analysis.rounds import (
    Look,
    RoundsPlan,
    again_alpha,
    compare_again,
    compare_rounds,
    rule_hash,
    run_looks,
)
from bakeoff.analysis.rounds.boundaries import ExactCrossing, boundary

SEEDS = tuple(range(101, 117))
PLAN = RoundsPlan(SEEDS, (3, 5, 8), margin=0.03, better="higher", draws=20_000)
ONE_LOOK = replace(PLAN, looks=(3,))


def scores(values: object, seeds: tuple[int, ...] | None = None) -> Scores:
    array = np.array(values, dtype=np.float64)
    return Scores(SEEDS[: len(array)] if seeds is None else seeds, array)


def simulate(
    gain: float, rng: np.random.Generator, n_seeds: int = 8, sd: float = 0.01, n_items: int = 400
) -> Scores:
    accuracy = 0.7 + gain + sd * rng.standard_normal((n_seeds, 1))
    return scores(rng.random((n_seeds, n_items)) < accuracy)


@pytest.fixture
def study() -> tuple[dict[str, Scores], Scores]:
    rng = np.random.default_rng(16)
    control = simulate(0.0, rng)
    gains = {"far": 0.2, "same": 0.0, "near": 0.03, "below": -0.2}
    return {m: simulate(gain, rng) for m, gain in gains.items()}, control


# Two contenders, three replicates, two items; the control scores 0 throughout, so that these are
# the differences. Replicate means of a: 1, 2, 6; of b: 1, 1, 4.
A = [[0, 2], [2, 2], [4, 8]]
B = [[0, 2], [1, 1], [5, 3]]
ZERO = scores(np.zeros((3, 2)))


def test_variances_by_hand() -> None:
    """The parts of the variance of two differences, before and after pooling."""
    look = run_looks({"a": scores(A), "b": scores(B)}, ZERO, ONE_LOOK)[0]
    a, b = look.contenders["a"], look.contenders["b"]
    # a: the estimate is 3, item means are 2 and 4: (1 + 1) / (2 * 1) = 1
    assert (a.estimate, b.estimate) == (3.0, 2.0)
    assert a.item_variance == pytest.approx(1.0)
    # the rest, by replicate: (0, 0), (1, -1), (-1, 1); squares 4 / ((3 - 1) (2 - 1)) / 6
    assert a.noise == pytest.approx(4 / 2 / 6)
    # replicate means vary by ((1-3)^2 + (2-3)^2 + (6-3)^2) / 2 = 7; of the mean, less the noise
    assert a.seed_variance == pytest.approx(7 / 3 - 1 / 3)
    # b: item means 2, 2; rest (-1, 1), (0, 0), (1, -1); replicate means vary by 3
    assert b.item_variance == 0.0
    assert b.noise == pytest.approx(1 / 3)
    assert b.seed_variance == pytest.approx(3 / 3 - 1 / 3)
    # the pool is the mean (2 + 2/3) / 2 = 4/3, which raises b only
    assert a.pooled_variance == pytest.approx(2.0)
    assert b.pooled_variance == pytest.approx(4 / 3)


def test_clock_by_hand() -> None:
    """Lambda is half the mean of the stable part over a replicate's variance."""
    plan = replace(PLAN, looks=(3, 5, 8))
    look = run_looks({"a": scores(A), "b": scores(B)}, ZERO, plan)[0]
    # a: (1 - 1/3) / (3 (2 + 1/3)); b has no stable part
    clock = 0.5 * (2 / 3 / 7 + 0) / 2
    assert look.clock == pytest.approx(clock)
    time = (clock + 1 / 8) / (clock + 1 / 3)
    assert look.information == pytest.approx(time)
    spent = 2 * stats.norm.sf(stats.norm.isf(0.045 / 2) / math.sqrt(time))
    assert look.spent == pytest.approx(spent)
    assert look.critical == pytest.approx(dunnett_critical(2, spent))
    for j in (1, 2):
        alone = 2 * stats.norm.sf(stats.norm.isf(0.045 / j / 2) / math.sqrt(time))
        assert look.equivalence_critical[j] == pytest.approx(stats.norm.isf(alone))


def test_interval_by_hand() -> None:
    """Two replicates without any item noise: Student's t on one degree of freedom."""
    control = scores(np.zeros((2, 50)))
    only = scores(np.repeat([[0.1], [0.3]], 50, axis=1))
    look = run_looks({"m": only}, control, replace(PLAN, looks=(2,)))[0]
    found = look.contenders["m"]
    assert look.critical == pytest.approx(stats.norm.isf(0.045 / 2))
    assert found.high is not None
    half = stats.t(1).isf(0.045 / 2) * 0.1  # the standard error of 0.1 and 0.3 is 0.1
    assert found.high - found.estimate == pytest.approx(half, rel=3e-3)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == "seeds"


def test_single_look_has_the_intervals_of_compare(
    study: tuple[dict[str, Scores], Scores],
) -> None:
    """One look differs from the earlier analysis by its level and Dunnett's value only."""
    contenders, control = study
    look = run_looks(contenders, control, replace(PLAN, looks=(8,), alpha=0.05))[0]
    rng = np.random.default_rng(0)
    earlier = compare(contenders, control, margin=0.03, better="higher", rng=rng, needs=False)
    for method, found in look.contenders.items():
        before = earlier[method]
        assert found.verdict is before.verdict
        assert found.high is not None
        assert before.difference.high is not None
        assert found.high == pytest.approx(before.difference.high, rel=0.02)


def test_interval_and_score_follow_the_error_distribution(
    study: tuple[dict[str, Scores], Scores],
) -> None:
    look = run_looks(*study, PLAN)[0]
    assert look.critical is not None
    for found in look.contenders.values():
        between, noise = found.pooled_variance, found.noise
        uncertain = between * (between + 2 * noise) / (between + noise)
        total = found.item_variance + between
        error = VarianceComponents(
            *(np.array([x]) for x in (total - uncertain, found.item_df, uncertain, found.seed_df))
        )
        assert found.z == pytest.approx(z_score(np.abs([found.estimate]), error)[0])
        assert found.high is not None
        assert found.high - found.estimate == pytest.approx(half_width(look.critical, error)[0])


def test_closed_contender_keeps_its_noise(study: tuple[dict[str, Scores], Scores]) -> None:
    """The floor at the second look holds the variances of contenders closed at the first."""
    contenders, control = study
    plan = replace(PLAN, looks=(5, 8))
    first, second = run_looks(contenders, control, plan)
    closed = set(first.open) - set(second.open)
    assert closed
    assert second.open
    last = {**first.contenders, **second.contenders}
    floor = math.fsum(c.seed_variance * c.n_seeds for c in last.values()) / len(last)
    for found in second.contenders.values():
        own = found.seed_variance * found.n_seeds
        assert found.pooled_variance * found.n_seeds == pytest.approx(max(own, floor))
    # the closed ones have 4 degrees of freedom, the others 7
    dfs = [c.n_seeds - 1 for c in last.values()]
    assert sorted(dfs) == [4] * len(closed) + [7] * len(second.open)
    gain = 4 / (1 + 3 / 4)  # of four variances that correlate at a quarter
    pool_df = gain * 4 / math.fsum(1 / df for df in dfs)
    at_floor = [c for c in second.contenders.values() if c.seed_variance * c.n_seeds < floor]
    assert at_floor
    assert all(c.seed_df == pytest.approx(pool_df) for c in at_floor)


def test_boundaries_stay_as_they_were_used(study: tuple[dict[str, Scores], Scores]) -> None:
    contenders, control = study
    looks = run_looks({"near": contenders["near"]}, control, replace(PLAN, looks=(5, 8)))
    assert len(looks) == 2
    first, second = looks
    assert first.critical is not None
    assert second.critical is not None
    crossing = ExactCrossing(second.clock, (5, 8), two_sided=True)
    expected = crossing.critical([first.critical], 0.045 - first.spent)
    assert second.critical == pytest.approx(expected)
    assert second.information == 1.0
    assert second.spent == 0.045


def test_verdicts(study: tuple[dict[str, Scores], Scores]) -> None:
    contenders, control = study
    found = compare_rounds(run_looks(contenders, control, PLAN), PLAN)
    assert found["far"].verdict is Verdict.BETTER
    assert found["below"].verdict is Verdict.WORSE
    assert found["far"].replicates is not None
    assert found["far"].replicates < 8
    lower = replace(PLAN, better="lower")
    turned = compare_rounds(run_looks(contenders, control, lower), lower)
    assert turned["far"].verdict is Verdict.WORSE
    # the difference stays that of method - control
    assert turned["far"].difference == found["far"].difference


def test_equivalence_wins_over_better_and_gives_its_share_back() -> None:
    """A difference of 0.01 on each item: proven, and within the margin of 0.03."""
    rng = np.random.default_rng(3)
    control = scores(rng.random((8, 200)))
    noise = 0.002 * rng.standard_normal((3, 8, 200))
    contenders = {
        f"m{i}": scores(control.values + gain + noise[i]) for i, gain in enumerate((0.01, 0, 0.2))
    }
    look = run_looks(contenders, control, PLAN)[0]
    assert look.critical is not None
    found = look.contenders
    assert found["m0"].verdict is Verdict.EQUIVALENT
    assert found["m0"].z > look.critical
    assert found["m1"].verdict is Verdict.EQUIVALENT
    assert found["m2"].verdict is Verdict.BETTER
    # both are equivalent at alpha / 3, so m2's test of equivalence is at alpha itself
    assert [found[m].rank for m in ("m0", "m1", "m2")] == [3, 3, 1]


@pytest.mark.parametrize("looks", [(1,), (3, 5)])
def test_identical_scores_are_equivalent(looks: tuple[int, ...]) -> None:
    same = scores(np.tile([1.0, 0.0], (5, 20)))
    plan = replace(PLAN, looks=looks, margin=0.0)
    found = run_looks({"m": same}, same, plan)[0].contenders["m"]
    assert found.verdict is Verdict.EQUIVALENT
    assert (found.low, found.estimate, found.high) == (0.0, 0.0, 0.0)


def test_constant_difference_is_proven_at_once() -> None:
    control = scores(np.tile([1.0, 0.0], (5, 20)))
    shifted = scores(control.values + 0.1)
    found = run_looks({"m": shifted}, control, replace(PLAN, looks=(3, 5)))
    assert len(found) == 1
    assert found[0].contenders["m"].verdict is Verdict.BETTER
    assert found[0].contenders["m"].z == math.inf
    assert Look.from_json(json.loads(json.dumps(found[0].to_json(), allow_nan=False))) == found[0]


def test_few_discordant_items_are_not_equivalent() -> None:
    """Two of 100 items differ: their variance is less than a difference of the margin has."""
    control = scores(np.ones((3, 100)))
    values = np.ones((3, 100))
    values[:, 0] = 0.0
    found = run_looks({"m": scores(values)}, control, replace(ONE_LOOK, margin=0.02))[0]
    m = found.contenders["m"]
    # |-0.01| is 0.01 from the margin; a mean of -1, 0, 1 at 0.02 has 0.02 * 0.98 / 100
    assert m.z_equivalence <= 0.01 / math.sqrt(0.02 * 0.98 / 100)
    assert m.verdict is not Verdict.EQUIVALENT


def test_futility_closes_and_names_the_items() -> None:
    """Items dominate and the interval cannot exclude 0 or fit the margin at the last look."""
    rng = np.random.default_rng(11)
    taste = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.15, 0.7, 0.15])
    difference = taste - taste.mean() + 0.01 + 0.001 * rng.standard_normal((8, 300))
    look = run_looks({"m": scores(difference)}, scores(np.zeros((8, 300))), PLAN)[0]
    found = look.contenders["m"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == "items"
    # 0.3 / n items alone: with z 2.0 + 0.84 for the difference 0.01, or for the gap 0.02
    assert found.items_needed is not None
    assert 300 * 10 < found.items_needed < 300 * 30
    assert found.seeds_needed is None
    comparison = compare_rounds([look], PLAN)["m"]
    assert comparison.items_share == pytest.approx(1.0, abs=0.01)
    assert comparison.floor is not None
    assert comparison.difference.high is not None
    half = comparison.difference.high - comparison.difference.estimate
    assert comparison.floor == pytest.approx(half, rel=0.05)


def test_futility_by_seeds() -> None:
    """Replicates that differ wildly: the last look will not settle it, more of them would."""
    means = np.array([0.3, -0.3, 0.35, -0.2, -0.1])[:, None]
    rng = np.random.default_rng(2)
    values = means + 0.01 * rng.standard_normal((5, 400))
    plan = replace(PLAN, looks=(5, 6))
    found = run_looks({"m": scores(values)}, scores(np.zeros((5, 400))), plan)[0].contenders["m"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == "seeds"
    assert found.items_needed is None
    assert found.seeds_needed is not None
    assert found.seeds_needed > 100


def test_looks_wait_for_the_planned_seeds(study: tuple[dict[str, Scores], Scores]) -> None:
    contenders, control = study
    short = {**contenders, "near": Scores(SEEDS[:4], contenders["near"].values[:4])}
    assert [look.replicates for look in run_looks(short, control, PLAN)] == [3]
    few = Scores(SEEDS[:2], control.values[:2])
    assert run_looks(contenders, few, PLAN) == ()
    # a replicate that failed will never come
    looks = run_looks(short, control, PLAN, ended=SEEDS[:8])
    assert [look.replicates for look in looks] == [3, 5, 8]
    assert looks[1].contenders["near"].n_seeds == 4


def test_contender_without_replicates_is_closed(study: tuple[dict[str, Scores], Scores]) -> None:
    contenders, control = study
    failed = Scores((SEEDS[1],), contenders["near"].values[:1])
    looks = run_looks({**contenders, "near": failed}, control, PLAN, ended=SEEDS)
    assert looks[0].missing == ("near",)
    assert all("near" not in look.contenders for look in looks)
    assert "near" not in compare_rounds(looks, PLAN)
    # it still counts among the contenders
    full = run_looks(contenders, control, PLAN)
    assert looks[0].equivalence_critical.keys() == full[0].equivalence_critical.keys()


def test_one_seed_tells_no_seed_noise() -> None:
    rng = np.random.default_rng(4)
    control, other = simulate(0, rng, 1), simulate(0.3, rng, 1)
    plan = replace(PLAN, looks=(1,))
    looks = run_looks({"m": other}, control, plan)
    found = compare_rounds(looks, plan)["m"]
    assert not found.seed_noise_known
    assert found.floor is None
    assert found.verdict is Verdict.BETTER


def test_looks_continue_from_those_made(study: tuple[dict[str, Scores], Scores]) -> None:
    contenders, control = study
    looks = run_looks(contenders, control, PLAN)
    assert len(looks) > 1
    stored = [Look.from_json(json.loads(json.dumps(look.to_json()))) for look in looks[:1]]
    assert run_looks(contenders, control, PLAN, made=stored) == looks


def test_order_of_contenders_changes_no_number(study: tuple[dict[str, Scores], Scores]) -> None:
    contenders, control = study
    turned = dict(reversed(contenders.items()))
    looks = run_looks(contenders, control, PLAN)
    assert run_looks(turned, control, PLAN) == looks
    assert looks == run_looks(contenders, control, PLAN)


def test_json_keeps_every_bit(study: tuple[dict[str, Scores], Scores]) -> None:
    for look in run_looks(*study, PLAN):
        written = json.dumps(look.to_json(), allow_nan=False)
        assert Look.from_json(json.loads(written)) == look


def test_p_values_agree_with_the_verdicts(study: tuple[dict[str, Scores], Scores]) -> None:
    """Below alpha exactly where the interval excludes 0, and where equivalence is shown."""
    looks = run_looks(*study, PLAN)
    found = compare_rounds(looks, PLAN)
    assert found.keys() == study[0].keys()
    for comparison in found.values():
        low, high = comparison.difference.low, comparison.difference.high
        assert low is not None
        assert high is not None
        assert (comparison.p_adjusted < PLAN.alpha) is not (low <= 0 <= high)
        equivalent = comparison.verdict is Verdict.EQUIVALENT
        assert (comparison.p_equivalence < PLAN.alpha) is equivalent
        assert comparison.p_adjusted >= comparison.p_value


@pytest.mark.parametrize("gain", [0.02, 0.04, 0.06])
def test_repeated_p_value_is_the_level_that_the_score_just_passes(gain: float) -> None:
    rng = np.random.default_rng(5)
    control, other = simulate(0, rng, sd=0.02), simulate(gain, rng, sd=0.02)
    looks = run_looks({"m": other}, control, PLAN)
    found = compare_rounds(looks, PLAN)["m"]
    assert found.look is not None
    made = looks[: found.look]
    level = found.p_adjusted
    if 1e-4 < level < 0.9:
        crossings = [ExactCrossing(look.clock, PLAN.looks, two_sided=True) for look in made]
        critical = boundary(crossings, [look.information for look in made], level)[-1]
        assert critical == pytest.approx(made[-1].contenders["m"].z, abs=0.02)


def test_p_value_of_one_look_is_dunnetts() -> None:
    rng = np.random.default_rng(6)
    control = simulate(0, rng, 3)
    contenders = {f"m{i}": simulate(0.03, rng, 3) for i in range(4)}
    looks = run_looks(contenders, control, ONE_LOOK)
    for method, found in compare_rounds(looks, ONE_LOOK).items():
        z = looks[0].contenders[method].z
        if found.p_adjusted < 0.9:
            assert dunnett_critical(4, found.p_adjusted) == pytest.approx(z, abs=0.02)


def test_open_contender_is_inconclusive_for_lack_of_time(
    study: tuple[dict[str, Scores], Scores],
) -> None:
    looks = run_looks(*study, PLAN)[:1]
    still_open = looks[0].still_open
    assert still_open
    for out_of_time, reason in ((True, "time"), (False, None)):
        found = compare_rounds(looks, PLAN, out_of_time=out_of_time)[still_open[0]]
        assert found.verdict is Verdict.INCONCLUSIVE
        assert found.reason == reason


def test_again() -> None:
    """The first further look spends 0.25 %, the second 0.125 %; in all at most 0.5 %."""
    assert [again_alpha(j) for j in (1, 2, 3)] == [0.0025, 0.00125, 0.000625]
    rng = np.random.default_rng(8)
    control = scores(rng.standard_normal((5, 100)))
    shift = 0.1 * rng.standard_normal((5, 100))
    shift += 0.0125 - shift.mean()  # 2.6 standard errors
    contender = scores(control.values + shift)
    plan = RoundsPlan(SEEDS[:5], (5,), margin=0.0, better="higher")
    found = compare_again({"m": contender}, control, plan, 1)["m"]
    nominal = compare_rounds(run_looks({"m": contender}, control, plan), plan)["m"]
    assert found.p_adjusted == pytest.approx(nominal.p_adjusted, rel=0.05)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert nominal.verdict is Verdict.BETTER
    assert found.exploratory is Verdict.BETTER
    far = scores(control.values + shift + 0.1)
    certain = compare_again({"m": far}, control, plan, 1)["m"]
    assert certain.verdict is Verdict.BETTER
    assert certain.exploratory is None


def test_groups_widen_the_interval() -> None:
    """Every item four times over, in groups of four: the interval of a quarter of the items."""
    rng = np.random.default_rng(9)
    few = rng.standard_normal((3, 50)) * 0.1
    many = np.repeat(few, 4, axis=1)
    groups = np.repeat(np.arange(50), 4)
    plan = replace(ONE_LOOK, margin=0.1)
    grouped = run_looks(
        {"m": Scores(SEEDS[:3], many, groups)}, Scores(SEEDS[:3], 0 * many, groups), plan
    )[0].contenders["m"]
    alone = run_looks({"m": scores(few)}, scores(0 * few), plan)[0].contenders["m"]
    assert grouped.item_variance == pytest.approx(alone.item_variance)
    assert grouped.noise == pytest.approx(alone.noise)
    assert grouped.item_df == pytest.approx(alone.item_df)
    assert grouped.low == pytest.approx(alone.low)


def test_rule_hash_is_stable() -> None:
    assert rule_hash() == rule_hash()
    assert len(rule_hash()) == 16


@pytest.mark.parametrize("looks", [(), (5, 3), (3, 3), (0, 3), (3, 20)])
def test_plan_refuses_looks_that_do_not_fit(looks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="looks"):
        replace(PLAN, looks=looks)
