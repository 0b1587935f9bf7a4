"""The race's rules against answers worked out by hand, and the simulated race in brief."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from types import ModuleType

import numpy as np
import pytest

from bakeoff.study.planning import racing
from bakeoff.study.planning.racing import (
    Decision,
    RipeDecision,
    Rules,
    RungStanding,
    choose_finalist,
    decide_rung,
    forecast_difference,
    is_dominated,
    is_ripe,
    keep_at_rungs,
    leading_losses,
    rung_candidates,
)

RULES = Rules(rungs=(10, 30), steps=100, contenders=2, keep=(2, 1), drift=0.04)
ALIKE = {"memory": 1.0, "time": 1.0}
"""Costs of every method where they decide nothing."""


def standing(method: str, rate: float, *losses: float, seed: int = 1) -> RungStanding:
    """Return a trial with these per-item losses; none: it diverged."""
    values = np.array(losses) if losses else None
    return RungStanding(trial_id(method, rate, seed), method, seed, rate, values)


def around(
    method: str, rate: float, mean: float, spread: float = 0.01, seed: int = 1
) -> RungStanding:
    """Return a trial of 100 items whose differences to another's have no mean but theirs."""
    noise = np.tile([-spread, spread], 50)
    return RungStanding(trial_id(method, rate, seed), method, seed, rate, mean + noise)


def trial_id(method: str, rate: float, seed: int) -> str:
    """Return a readable id; seed 1 is left out."""
    return f"{method}@{rate:g}" + (f"#{seed}" if seed != 1 else "")


def judge(
    *standings: RungStanding,
    rung: int = 1,
    rules: Rules = RULES,
    costs: Mapping[str, Mapping[str, float | None]] | None = None,
) -> dict[str, Decision]:
    costs = {s.method: ALIKE for s in standings} if costs is None else costs
    found = decide_rung(standings, "lora", costs, rung, rules)
    assert [d.trial_id for d in found] == [s.trial_id for s in standings]
    for decision in found:
        json.dumps(decision.numbers, allow_nan=False)
    return {d.trial_id: d for d in found}


def going_on(found: Mapping[str, Decision]) -> set[str]:
    return {name for name, decision in found.items() if decision.goes_on}


# ---------------------------------------------------------------- settings


def test_two_settings_survive_then_one() -> None:
    """Two settings survive the first rung, one the second."""
    trials = [standing("lora", 10.0**-i, 1.0 + 0.1 * i, 1.2 + 0.1 * i) for i in range(5)]
    first = judge(*trials, rung=0)
    assert going_on(first) == {"lora@1", "lora@0.1"}
    assert first["lora@0.01"].numbers == {
        "mean_loss": pytest.approx(1.3), "score": None, "place": 3, "of": 5, "outdone_by": None,
    }  # fmt: skip
    assert first["lora@0.01"].reason == "setting 3 of 5 by validation loss; 2 continue"
    assert first["lora@1"].reason == "setting 1 of 5 by validation loss"
    assert {d.step for d in first.values()} == {10}
    second = judge(*trials[:2], rung=1)
    assert going_on(second) == {"lora@1"}
    assert second["lora@0.1"].step == 30
    # a third rung keeps as many as the last number says
    three = Rules(rungs=(10, 30, 60), steps=100, contenders=2, keep=(2, 1))
    assert going_on(judge(*trials[:2], rung=2, rules=three)) == {"lora@1"}


def test_two_settings_continue_by_default() -> None:
    """With the default rules two settings continue to the end."""
    trials = [standing("lora", 10.0**-i, 1.0 + 0.1 * i, 1.2 + 0.1 * i) for i in range(5)]
    default = Rules(rungs=(10,), steps=100, contenders=2)
    assert going_on(judge(*trials, rung=0, rules=default)) == {"lora@1", "lora@0.1"}


def test_replicates_race_separately() -> None:
    """Settings are ranked inside a replicate: no replicate changes another's places."""
    first = [standing("lora", 10.0**-i, 1.0 + 0.1 * i, 1.0 + 0.1 * i) for i in range(3)]
    # the second replicate has the reverse order, and higher losses throughout
    second = [standing("lora", 10.0**-i, 3.0 - 0.1 * i, 3.0 - 0.1 * i, seed=2) for i in range(3)]
    found = judge(*first, *second, rung=0)
    assert going_on(found) == {"lora@1", "lora@0.1", "lora@0.1#2", "lora@0.01#2"}
    assert found["lora@1#2"].reason == "setting 3 of 3 by validation loss; 2 continue"
    alone = judge(*second, rung=0)
    assert all(found[name] == decision for name, decision in alone.items())


def test_ties_prefer_lower_rate() -> None:
    """A tie is resolved in favour of the lower rate."""
    found = judge(standing("lora", 0.1, 1.0, 1.0), standing("lora", 0.01, 1.0, 1.0))
    assert going_on(found) == {"lora@0.01"}
    assert [d.numbers["place"] for d in found.values()] == [2, 1]


def test_diverged_trial_takes_no_place() -> None:
    """A diverged trial stops and takes no place among the survivors."""
    found = judge(
        standing("lora", 1.0), standing("lora", 0.1, 2.0, 2.0), standing("lora", 0.01, 1.0, 1.0),
        rung=0,
    )  # fmt: skip
    assert going_on(found) == {"lora@0.1", "lora@0.01"}
    gone = found["lora@1"]
    assert gone.reason == "it has no validation loss"
    assert (gone.numbers["mean_loss"], gone.numbers["place"], gone.numbers["of"]) == (None, 3, 3)
    # fewer left than may go on: what diverged still stops
    assert going_on(judge(standing("lora", 1.0), standing("lora", 0.1, 2.0, 2.0), rung=0)) == {
        "lora@0.1"
    }


# ---------------------------------------------------------------- methods


def test_worse_dearer_method_stops() -> None:
    """A method that is surely worse and no cheaper stops."""
    found = judge(around("lora", 1, 1.0), around("oft", 1, 1.5), around("ia3", 1, 1.01))
    assert going_on(found) == {"lora@1", "ia3@1"}
    stopped = found["oft@1"]
    assert stopped.numbers["outdone_by"] == "lora"
    assert stopped.numbers["difference"] == pytest.approx(0.5)
    assert "worse than the control by 0.5 nats" in stopped.reason
    assert stopped.reason.endswith("and lora, which is better, costs no more on any axis")


def test_first_rung_stops_no_method() -> None:
    """No method stops at the first rung."""
    trials = (around("lora", 1, 1.0), around("oft", 1, 1.5))
    assert going_on(judge(*trials, rung=0)) == {"lora@1", "oft@1"}
    early = Rules(rungs=(10, 30), steps=100, contenders=2, drift=0.04, first_stop=0)
    assert going_on(judge(*trials, rung=0, rules=early)) == {"lora@1"}
    # one rung is the first one
    single = Rules(rungs=(30,), steps=100, contenders=2)
    assert going_on(judge(*trials, rung=0, rules=single)) == {"lora@1", "oft@1"}


def test_method_stops_on_mean_over_replicates() -> None:
    """A method is judged by its losses averaged over replicates, each at its best setting."""
    lora = [around("lora", 1, 1.0), around("lora", 1, 1.0, seed=2)]
    # much worse at one seed, better at the other: .25 nats worse on average
    oft = [around("oft", 1, 1.6), around("oft", 2, 9.0), around("oft", 1, 0.9, seed=2)]
    found = judge(*lora, *oft)
    assert going_on(found) == {"lora@1", "lora@1#2"}
    assert found["oft@1"].numbers["difference"] == pytest.approx(0.25)
    assert found["oft@1#2"].numbers["outdone_by"] == "lora"
    # on the whole as good: it continues in both, although it is far worse in one
    even = [around("oft", 1, 1.5), around("oft", 1, 0.5, seed=2)]
    assert going_on(judge(*lora, *even)) == {"lora@1", "lora@1#2", "oft@1", "oft@1#2"}


def test_only_shared_replicates_are_compared() -> None:
    """A replicate in which either method diverged counts for neither of the two."""
    lora = [standing("lora", 1), around("lora", 1, 1.0, seed=2), around("lora", 1, 9.0, seed=3)]
    oft = [around("oft", 1, 9.0), around("oft", 1, 1.0, seed=2), standing("oft", 1, seed=3)]
    found = judge(*lora, *oft)
    assert found["oft@1#2"].numbers["difference"] == pytest.approx(0.0)
    assert going_on(found) == {"lora@1#2", "lora@1#3", "oft@1", "oft@1#2"}
    # no replicate in common: no forecast
    assert "difference" not in judge(lora[0], lora[1], oft[0], oft[2])["oft@1"].numbers


def test_cheaper_method_survives() -> None:
    """A method that is cheaper on some axis continues."""
    costs = {"lora": {"memory": 1.0, "time": 1.0}, "oft": {"memory": 0.5, "time": 9.0}}
    found = judge(around("lora", 1, 1.0), around("oft", 1, 1.5), costs=costs)
    assert found["oft@1"].goes_on
    assert "no better method costs as little" in found["oft@1"].reason


def test_dominated_by_contender_stops() -> None:
    """A better contender that costs no more also stops a method."""
    costs = {
        "lora": {"memory": 1.0, "time": 1.0},
        "ia3": {"memory": 0.5, "time": 1.0},
        "oft": {"memory": 0.5, "time": 1.0},
    }
    trials = (around("lora", 1, 1.0), around("oft", 1, 1.5), around("ia3", 1, 1.01))
    found = judge(*trials, costs=costs)
    assert going_on(found) == {"lora@1", "ia3@1"}
    assert found["oft@1"].numbers["outdone_by"] == "ia3"
    # but not one that is only perhaps better
    near = (around("lora", 1, 1.0), around("oft", 1, 1.5), around("ia3", 1, 1.45))
    assert going_on(judge(*near, costs=costs)) == {"lora@1", "oft@1", "ia3@1"}


def test_control_never_stops() -> None:
    """The control never stops."""
    found = judge(around("lora", 1, 9.0), around("oft", 1, 1.0), around("ia3", 1, 1.0))
    assert going_on(found) == {"lora@1", "oft@1", "ia3@1"}
    assert "difference" not in found["lora@1"].numbers


def test_missing_control_loss_stops_nothing() -> None:
    """Without a loss of the control, no method stops."""
    worse = around("oft", 1, 99.0)
    assert judge(worse)["oft@1"].goes_on, "the control is not there"
    found = judge(standing("lora", 1), standing("lora", 0.1), worse)
    assert going_on(found) == {"oft@1"}, "all of the control diverged"
    assert "difference" not in found["oft@1"].numbers


@pytest.mark.parametrize("missing", ["lora", "oft"])
def test_without_costs_no_method_stops(missing: str) -> None:
    trials = (around("lora", 1, 1.0), around("oft", 1, 1.5))
    unread: dict[str, Mapping[str, float | None]] = {"lora": ALIKE, "oft": ALIKE}
    assert not judge(*trials, costs=unread)["oft@1"].goes_on
    assert judge(*trials, costs=unread | {missing: {"memory": None, "time": 1.0}})["oft@1"].goes_on
    del unread[missing]
    assert judge(*trials, costs=unread)["oft@1"].goes_on


def test_best_setting_represents_method() -> None:
    """Only the best setting represents a method."""
    found = judge(
        around("lora", 1, 1.0), around("lora", 2, 1.1), around("oft", 1, 1.0), around("oft", 2, 9.0)
    )
    assert going_on(found) == {"lora@1", "oft@1"}
    assert found["oft@2"].reason == "setting 2 of 2 by validation loss; 1 continues"


# ---------------------------------------------------------------- costs


@pytest.mark.parametrize(
    ("own", "of_control", "expected"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, True),
        ({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, True),
        ({"a": 1.0}, {"a": 1.049}, True),  # within 5 %: equal
        ({"a": 1.0}, {"a": 1.051}, False),
        ({"a": 2.0, "b": 0.9}, {"a": 1.0, "b": 1.0}, False),
        ({"a": 2.0, "b": None}, {"a": 1.0, "b": 1.0}, False),
        ({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": None}, False),
        ({"a": 2.0, "b": 2.0}, {"a": 1.0}, False),  # on b it may be the cheaper
        ({"a": 2.0}, {"a": 1.0, "b": 1.0}, False),
        ({}, {"a": 1.0}, False),
    ],
)
def test_dominated(
    own: dict[str, float | None], of_control: dict[str, float | None], expected: bool
) -> None:
    assert is_dominated({"oft": own, "lora": of_control}, "oft", "lora") is expected


def test_dominated_without_either_method() -> None:
    assert not is_dominated({"lora": ALIKE}, "oft", "lora")
    assert not is_dominated({"oft": ALIKE}, "oft", "lora")


# ---------------------------------------------------------------- forecast


def test_forecast_by_hand() -> None:
    rules = Rules(rungs=(10, 30), steps=100, contenders=4, margin=0.1, drift=0.2, first_stop=0)
    # two replicates whose mean is 2, 3, 4, 3
    contender = {1: np.array([1.0, 3.0, 5.0, 3.0]), 2: np.array([3.0, 3.0, 3.0, 3.0])}
    found = forecast_difference(contender, dict.fromkeys((1, 2), np.full(4, 2.0)), 1, rules)
    # differences 0, 1, 2, 1: mean 1, sd sqrt(2 / 3), over 4 items sqrt(1 / 6);
    # drift 0.2 of a loss of 2 for the 70 % that are left: 0.28
    error = math.sqrt(1 / 6 + 0.28**2)
    assert found == {
        "difference": pytest.approx(1.0),
        "standard_error": pytest.approx(error),
        "margin": pytest.approx(0.2),
        "p_within": pytest.approx(NormalDist().cdf(-0.8 / error)),
        "level": pytest.approx(0.05 / (2 * 4)),
    }


def test_forecast_needs_losses_and_items() -> None:
    """There is no forecast without losses, a shared seed or items."""
    there = {1: np.array([1.0, 2.0])}
    assert forecast_difference({}, there, 0, RULES) is None
    assert forecast_difference(there, {}, 0, RULES) is None
    assert forecast_difference(there, {2: np.array([1.0, 2.0])}, 0, RULES) is None
    assert forecast_difference({1: np.array([9.0])}, {1: np.array([1.0])}, 0, RULES) is None


@pytest.mark.parametrize(("loss", "within"), [(1.0, 1.0), (1.019, 1.0), (1.021, 0.0)])
def test_noiseless_forecast_is_difference(loss: float, within: float) -> None:
    """A forecast without noise is the difference itself."""
    rules = Rules(rungs=(10,), steps=100, contenders=1, drift=0.0)
    found = forecast_difference({1: np.full(2, loss)}, {1: np.ones(2)}, 0, rules)
    assert found is not None
    assert found["p_within"] == within


def test_level_divided_by_tests() -> None:
    """The level is divided by the number of rungs and contenders."""

    def level(rungs: int, contenders: int, first_stop: int) -> float:
        return Rules(tuple(range(1, rungs + 1)), 100, contenders, first_stop=first_stop).level

    assert level(2, 1, 0) == pytest.approx(0.05 / 2)
    assert level(2, 7, 0) == pytest.approx(0.05 / 14)
    assert level(2, 7, 1) == pytest.approx(0.05 / 7), "at the first rung no method is looked at"
    assert level(3, 7, 1) == pytest.approx(0.05 / 14)
    assert level(1, 0, 1) == pytest.approx(0.05)
    between = Rules((10, 30), 100, 5).between_contenders()
    assert between.level == pytest.approx(0.05 / 25)
    assert between.drift_share == pytest.approx(racing.DRIFT_SHORT * math.sqrt(2))
    # three rounds at two tested rungs, two contenders
    assert Rules((1, 2, 3), 100, 2, rounds=3).level == pytest.approx(0.05 / (2 * 3 * 2))


@pytest.mark.parametrize(("steps", "drift"), [(60, 0.10), (199, 0.10), (200, 0.04), (5000, 0.04)])
def test_drift_is_larger_in_short_studies(steps: int, drift: float) -> None:
    """The drift is 10 % of the loss below 200 steps, 4 % from there on."""
    rules = Rules((steps // 4,), steps, contenders=1, first_stop=0)
    assert rules.drift_share == drift
    found = forecast_difference({1: np.full(2, 3.0)}, {1: np.full(2, 2.0)}, 0, rules)
    assert found is not None
    left = 1 - (steps // 4) / steps
    assert found["standard_error"] == pytest.approx(drift * 2.0 * left)


def test_error_rate_at_nominal_level() -> None:
    """Without a true difference, the rule errs no more often than its level."""
    rng, rules = np.random.default_rng(3), Rules((10, 30), 100, 5)
    n, stopped = 600, 0
    names = [f"m{i}" for i in range(5)]
    for _ in range(n):
        # every contender ends right at the margin; items and drift are as the forecast takes them
        items = rng.normal(1.0, 0.3, 200)
        trials = [RungStanding("lora", "lora", 1, 1.0, items)]
        for name in names:
            moved = 0.02 + rng.normal(0.0, rules.drift_share * 0.7)
            losses = items + moved + rng.normal(0.0, 0.05, 200)
            trials.append(RungStanding(name, name, 1, 1.0, losses))
        found = decide_rung(trials, "lora", {t.method: ALIKE for t in trials}, 1, rules)
        stopped += any(not d.goes_on for d in found)
    # three Monte Carlo SDs above 5 %
    assert stopped / n <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)


# ---------------------------------------------------------------- the ripe rung


@pytest.mark.parametrize(
    ("first", "steps", "second", "expected"),
    [
        (6, 60, None, (6, 12, 20)),
        (30, 300, None, (30, 60, 100)),
        (1, 100, None, (1, 2, 4, 8, 16, 32, 33)),
        (20, 60, None, (20,)),
        (30, 60, None, (30,)),  # beyond a third of the budget: it stays
        (1, 2, None, (1,)),
        (6, 60, 18, (6, 12)),  # the second rung stays, the first one before it
        (6, 60, 12, (6,)),
        (6, 60, 30, (6, 12, 20)),
    ],
)
def test_rung_candidates(
    first: int, steps: int, second: int | None, expected: tuple[int, ...]
) -> None:
    assert rung_candidates(first, steps, second) == expected


@pytest.mark.parametrize(
    ("falls", "ripe", "fall", "z"),
    [
        # mean .3 of 2.5; sd sqrt(.06 / 3), over 4 items sqrt(.005)
        ([0.2, 0.2, 0.3, 0.5], True, 0.12, 0.3 / math.sqrt(0.005)),
        ([0.25, 0.25, 0.25, 0.25], True, 0.1, None),  # just 10 %, alike for all items
        ([0.125, 0.125, 0.125, 0.125], False, 0.05, None),
        ([0.1, 0.1, 0.1, 0.14], True, 0.044, 11.0),  # mean .11, standard error .01
        ([0.1, 0.1, 0.0, 0.1], False, 0.03, 3.0),  # mean .075, standard error .025
        ([0.1, -0.1, 0.1, -0.1], False, 0.0, 0.0),
        ([-1.0, -1.0, -1.0, -1.0], False, -0.4, None),  # the loss has risen
    ],
)
def test_ripe_by_hand(falls: list[float], ripe: bool, fall: float, z: float | None) -> None:
    """A rung counts if the loss has fallen by 10 %, or by 5 paired standard errors."""
    start = np.array([1.0, 2.0, 3.0, 4.0])
    found = is_ripe(start - np.array(falls), start, 20)
    assert (found.ripe, found.fall) == (ripe, pytest.approx(fall))
    assert found.z == (None if z is None else pytest.approx(z))


def test_ripe_averages_over_replicates() -> None:
    """Replicates are averaged item by item before the test."""
    start = np.array([[2.0, 2.0, 2.0], [4.0, 4.0, 4.0]])  # mean 3 by item
    control = np.array([[2.0, 1.7, 2.0], [3.4, 3.7, 3.4]])  # mean 2.7 by item
    found = is_ripe(control, start, 6)
    assert found.fall == pytest.approx(0.1)
    assert found == is_ripe(control.mean(axis=0), start.mean(axis=0), 6)


def test_not_ripe_without_losses() -> None:
    """Without a loss of the control, or with a single item, nothing is computed from it."""
    assert is_ripe(np.array([]), np.array([]), 30) == RipeDecision(False, None, None)
    assert is_ripe(np.array([0.5]), np.array([1.0]), 30) == RipeDecision(True, 0.5, None)


@pytest.mark.parametrize(("step", "ripe"), [(6, False), (19, False), (20, True), (300, True)])
def test_small_certain_fall_counts_from_step_20(step: int, ripe: bool) -> None:
    """A fall below 10 % counts only from step 20 on, however certain it is."""
    start = np.linspace(3.0, 4.0, 100)
    control = start - np.tile([0.2, 0.3], 50)  # 7 %, about 50 standard errors
    found = is_ripe(control, start, step)
    assert found.ripe is ripe
    assert found.z is not None
    assert found.z > 40


@pytest.mark.parametrize(
    ("keep", "ripe", "expected"),
    [
        ((2,), True, (2,)),
        ((2,), False, (3, 2)),  # the last one repeats: a second rung keeps two again
        ((2, 1), True, (2, 1)),
        ((2, 1), False, (3, 1)),
        ((4,), False, (4, 4)),
    ],
)
def test_three_continue_after_unripe_rung(
    keep: tuple[int, ...], ripe: bool, expected: tuple[int, ...]
) -> None:
    assert keep_at_rungs(keep, ripe) == expected


def test_leading_losses() -> None:
    """The leading setting of each replicate counts; a replicate that diverged is left out."""
    found = leading_losses(
        [
            standing("lora", 1, 1.0, 2.0), standing("lora", 2, 0.5, 1.0),
            standing("lora", 1, 3.0, 3.0, seed=2), standing("lora", 2, seed=2),
            standing("lora", 1, seed=3),
            standing("oft", 1, 0.1, 0.1),
        ],
        "lora",
    )  # fmt: skip
    assert {seed: losses.tolist() for seed, losses in found.items()} == {1: [0.5, 1], 2: [3, 3]}


# ---------------------------------------------------------------- the finalist


def test_finalist_has_lowest_loss() -> None:
    """The finalist has the lowest validation loss; ties go to the lower rate."""
    low, high = standing("lora", 0.1, 1.0, 2.0), standing("lora", 1.0, 1.0, 1.9)
    assert choose_finalist([low, high]) == "lora@1"
    assert choose_finalist([high, low, standing("lora", 0.01)]) == "lora@1"
    tied = standing("lora", 0.3, 2.0, 1.0)
    assert choose_finalist([tied, low]) == choose_finalist([low, tied]) == "lora@0.1"


def test_finalist_by_metric() -> None:
    """With a score, the score decides; a trial that diverged is never chosen."""
    losses = np.array([1.0, 1.0])
    trials = [
        RungStanding("a", "lora", 1, 1e-3, losses, -0.7),
        RungStanding("b", "lora", 1, 1e-2, losses + 0.1, -0.8),
        RungStanding("c", "lora", 1, 1e-4, None, -0.9),
    ]
    assert choose_finalist(trials) == "b"


def test_no_finalist_if_all_diverged() -> None:
    assert choose_finalist([standing("lora", 1), standing("lora", 2)]) is None
    assert choose_finalist([]) is None


# ---------------------------------------------------------------- the simulated race


def test_simulated_race(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """In simulated studies the race saves half of the steps and mostly chooses as in full."""
    assert script("race").main(["--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"steps_saved", "other_setting", "best_kept", "front_dropped"}
    # 5 runs against .1 x 5 + .9 x 2; what diverges early costs less
    assert found["steps_saved"] == pytest.approx(5 / 2.3, abs=0.02)
    assert found["other_setting"] < 0.20
    # with one rung no method stops
    assert (found["best_kept"], found["front_dropped"]) == (1.0, 0.0)


def test_simulated_two_rungs_keep_best(script: Callable[[str], ModuleType]) -> None:
    """Simulated racing with two rungs keeps the methods that it must."""
    race = script("race")
    (world,) = (w for w in race.WORLDS if w.name == "keep 2, 1")
    found = race.measure(world, 100, 0)
    assert found["steps_saved"][0] >= 5 / 1.6, "less than by the settings alone"
    assert found["best_kept"][0] >= 0.95
    assert found["front_dropped"][0] <= racing.ALPHA
    # regret is about twice that of the full search (.09 points)
    assert 0.10 < found["regret_raced"][0] < 0.25


def test_simulated_curves_rank_as_published(script: Callable[[str], ModuleType]) -> None:
    """The simulated curves have the published rank correlation."""
    found = script("race").rank_correlations(50, 0)
    published = {"all 63": -0.94, "accuracy > 30 %": -0.91, "top 25": -0.65}
    assert {name: real for name, (real, _) in found.items()} == pytest.approx(published, abs=0.01)
    for real, made in found.values():
        assert abs(real - made) < 0.1
