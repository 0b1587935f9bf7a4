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
    Rules,
    RungStanding,
    decide_rung,
    forecast_difference,
    is_dominated,
)

RULES = Rules(rungs=(10, 30), steps=100, contenders=2)
ALIKE = {"memory": 1.0, "time": 1.0}
"""Costs of every method where they decide nothing."""


def standing(method: str, rate: float, *losses: float) -> RungStanding:
    """Return a trial with these per-item losses; none: it diverged."""
    values = np.array(losses) if losses else None
    return RungStanding(f"{method}@{rate:g}", method, rate, values)


def around(method: str, rate: float, mean: float, spread: float = 0.01) -> RungStanding:
    """Return a trial of 100 items whose differences to another's have no mean but theirs."""
    noise = np.tile([-spread, spread], 50)
    return RungStanding(f"{method}@{rate:g}", method, rate, mean + noise)


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
    three = Rules(rungs=(10, 30, 60), steps=100, contenders=2)
    assert going_on(judge(*trials[:2], rung=2, rules=three)) == {"lora@1"}


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
    early = Rules(rungs=(10, 30), steps=100, contenders=2, first_stop=0)
    assert going_on(judge(*trials, rung=0, rules=early)) == {"lora@1"}
    # one rung is the first one
    single = Rules(rungs=(30,), steps=100, contenders=2)
    assert going_on(judge(*trials, rung=0, rules=single)) == {"lora@1", "oft@1"}


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
    contender = standing("oft", 1, 2.0, 3.0, 4.0, 3.0)
    found = forecast_difference(contender, standing("lora", 1, 2.0, 2.0, 2.0, 2.0), 1, rules)
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
    """There is no forecast without losses or items."""
    there = standing("lora", 1, 1.0, 2.0)
    assert forecast_difference(standing("oft", 1), there, 0, RULES) is None
    assert forecast_difference(there, standing("oft", 1), 0, RULES) is None
    assert forecast_difference(standing("oft", 1, 9.0), standing("lora", 1, 1.0), 0, RULES) is None


@pytest.mark.parametrize(("loss", "within"), [(1.0, 1.0), (1.019, 1.0), (1.021, 0.0)])
def test_noiseless_forecast_is_difference(loss: float, within: float) -> None:
    """A forecast without noise is the difference itself."""
    rules = Rules(rungs=(10,), steps=100, contenders=1, drift=0.0)
    found = forecast_difference(
        standing("oft", 1, loss, loss), standing("lora", 1, 1.0, 1.0), 0, rules
    )
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
    assert between.drift == pytest.approx(racing.DRIFT * math.sqrt(2))


def test_error_rate_at_nominal_level() -> None:
    """Without a true difference, the rule errs no more often than its level."""
    rng, rules = np.random.default_rng(3), Rules((10, 30), 100, 5)
    n, stopped = 600, 0
    names = [f"m{i}" for i in range(5)]
    for _ in range(n):
        # every contender ends right at the margin; items and drift are as the forecast takes them
        items = rng.normal(1.0, 0.3, 200)
        trials = [RungStanding("lora", "lora", 1.0, items)]
        for name in names:
            moved = 0.02 + rng.normal(0.0, rules.drift * 0.7)
            losses = items + moved + rng.normal(0.0, 0.05, 200)
            trials.append(RungStanding(name, name, 1.0, losses))
        found = decide_rung(trials, "lora", {t.method: ALIKE for t in trials}, 1, rules)
        stopped += any(not d.goes_on for d in found)
    # three Monte Carlo SDs above 5 %
    assert stopped / n <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)


# ---------------------------------------------------------------- the simulated race


def test_simulated_racing_keeps_best(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated racing keeps the methods that it must."""
    assert script("race").main(["--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"steps_saved", "best_kept", "front_dropped"}
    assert found["steps_saved"] >= 2.05, "less than by the settings alone"
    assert found["best_kept"] >= 0.95
    assert found["front_dropped"] <= racing.ALPHA


def test_simulated_curves_rank_as_published(script: Callable[[str], ModuleType]) -> None:
    """The simulated curves have the published rank correlation."""
    found = script("race").rank_correlations(50, 0)
    published = {"all 63": -0.94, "accuracy > 30 %": -0.91, "top 25": -0.65}
    assert {name: real for name, (real, _) in found.items()} == pytest.approx(published, abs=0.01)
    for real, made in found.values():
        assert abs(real - made) < 0.1
