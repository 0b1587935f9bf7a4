"""What hours buy, from timings made up so that the answer can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bakeoff.core.errors import BakeoffError
from bakeoff.core.record import MetricInfo
from bakeoff.study.config import StudySpec, parse_spec
from bakeoff.study.planning import estimate as estimates
from bakeoff.study.planning import time_budget
from bakeoff.study.planning.estimate import FINAL, PROBES, SEARCH, Timing, estimate, get_phase
from bakeoff.study.planning.time_budget import (
    BudgetChoice,
    Deadline,
    plan_budget,
    refit_final_steps,
    slowdown,
    with_budget,
)

ACCURACY = MetricInfo("accuracy", "higher", "fraction", 0.0, 1.0)
ITEMS = {"train": 3200, "validation": 100, "test": 400}
"""200 steps of 16 are a pass."""
TEN = tuple(f"m{i}" for i in range(10))


def spec(contenders: tuple[str, ...] = TEN, **budget: Any) -> StudySpec:
    return parse_spec(
        {
            "name": "timed",
            "base": {"model": "somewhere"},
            "data": {"train": "rows.jsonl"},
            "task": {"kind": "classify"},
            "methods": {"control": "lora", "contenders": list(contenders)},
            "budget": {"batch_size": 16, "validations": 1, **budget},
        }
    )


def timing(method: str, step: float = 1.0) -> Timing:
    """Return a method whose lanes cost nothing, whose steps take ``step``, and nothing else."""
    return Timing(method, 0.0, {1: step, 5: step}, {1: 0.0, 5: 0.0}, 0.0, 2**20, 1000, 0.0)


TIMINGS = tuple(timing(m) for m in ("lora", *TEN))


def seconds(asked: StudySpec, **given: Any) -> float:
    made = with_budget(asked, BudgetChoice.from_spec(asked)._replace(**given))
    return estimate(made, TIMINGS, ITEMS).seconds


def test_estimate_by_hand() -> None:
    """An estimate matches a hand computation."""
    made = estimate(spec(("m0",), steps=100), TIMINGS, ITEMS)
    # 30 probe steps; 10 + 20 steps of search; 100 of the final runs: their lanes are free
    assert [p.wall for p in made.phases] == [60.0, 60.0, 200.0]
    assert made.seconds == 320.0
    assert made.in_full_seconds == 60 + 200 + 200
    assert get_phase(SEARCH, made).seconds == {"lora": 30.0, "m0": 30.0}
    assert (made.low, made.high) == (320 * 0.75, 320 * 1.25)


def test_estimate_shares_workers_except_probes() -> None:
    """An estimate divides work among workers, except for probes."""
    asked = spec(("m0", "m1"), steps=100).model_copy(deep=True)
    value = asked.model_dump(mode="json", exclude_none=True) | {"engine": {"workers": 2}}
    made = estimate(parse_spec(value), TIMINGS, ITEMS)
    assert get_phase(PROBES, made).wall == 90.0
    assert get_phase(FINAL, made).wall == 150.0


def test_estimate_includes_lanes_and_evaluation() -> None:
    """An estimate includes lanes and evaluation."""
    own = Timing("lora", 2.0, {1: 1.0, 5: 3.0}, {1: 0.1, 5: 0.1}, 0.5, None, 1000, 0.0)
    made = estimate(spec(("m0",), steps=100, seeds=3), (own,), ITEMS)
    # search: 5 lanes for 10 steps at 3 s, 2 lanes for 20 at 1.5 s, two loads, two validations of
    # 100 items at 0.1 s, and answers of the two trials at the last rung
    assert get_phase(SEARCH, made).seconds["lora"] == pytest.approx(
        10 * 3 + 20 * 1.5 + 2 * 2 + 2 * 100 * 0.1 + 2 * 100 * 0.5
    )
    # final: 3 lanes for 100 steps at 2 s, a load, one validation, 400 answers at each seed
    assert get_phase(FINAL, made).seconds["lora"] == pytest.approx(
        100 * 2 + 3 * 2 + 100 * 0.1 + 3 * 400 * 0.5
    )


def test_surplus_time_buys_steps_then_seeds() -> None:
    """Surplus time buys steps first, then seeds."""
    bought = plan_budget(spec(hours=2), TIMINGS, ITEMS, ACCURACY)
    # 11 methods at 30 + 1.3 steps: at 455 steps 95 % of 7200 s are used
    assert bought.steps == 455
    assert (bought.settings, bought.seeds, bought.dropped) == (5, 10, ())  # seeds are free here
    assert bought.passes == pytest.approx(455 / 200)
    assert bought.seconds <= 0.95 * 7200
    assert bought.detectable == pytest.approx(
        time_budget.expected_detectable(400, 10, 10, ACCURACY)
    )
    most = plan_budget(spec(hours=20), TIMINGS, ITEMS, ACCURACY)
    assert most.steps == 600  # three passes: more would be another question
    assert most.seconds < 20 * 3600 * 0.95


def test_timing_counts_against_budget() -> None:
    """The time that timing took counts against the budget."""
    late = plan_budget(spec(hours=2), TIMINGS, ITEMS, ACCURACY, spent=1430.0)
    # 5410 s are left: 11 methods at 30 + 1.3 steps
    assert late.steps == 355
    assert late.seconds == pytest.approx(1430 + 11 * (30 + 1.3 * 355), abs=6)


def test_stated_values_kept() -> None:
    """Values that the study file states are kept."""
    bought = plan_budget(spec(hours=2, seeds=4, settings=4), TIMINGS, ITEMS, ACCURACY)
    assert (bought.settings, bought.seeds) == (4, 4)


def test_short_time_drops_last_contenders() -> None:
    """Too little time drops contenders from the end of the list."""
    bought = plan_budget(spec(hours=0.5), TIMINGS, ITEMS, ACCURACY)
    # 1710 s: a pass of 200 steps and its probe and search take 290 s a method
    assert bought.contenders == TEN[:4]
    assert bought.dropped == TEN[4:]
    assert bought.steps >= 200
    assert bought.seconds <= 0.95 * 1800


def test_settings_dropped_before_contenders() -> None:
    """Settings are dropped before contenders are."""
    wide = tuple(
        Timing(m, 0.0, {1: 1.0, 5: 5.0}, {1: 0.0}, 0.0, None, 1000, 0.0) for m in ("lora", *TEN)
    )
    asked = spec(("m0",), hours=0.4, seeds=1)

    def took(settings: int) -> float:
        made = with_budget(asked, BudgetChoice(200, settings, 1, ("m0",)))
        return estimate(made, wide, ITEMS).seconds

    assert took(5) > took(4)
    bought = plan_budget(spec(("m0",), hours=took(4) / 0.95 / 3600, seeds=1), wide, ITEMS, ACCURACY)
    assert (bought.settings, bought.contenders) == (4, ("m0",))
    assert bought.steps == 200


def test_insufficient_time_refused_with_hint() -> None:
    """Insufficient time is refused with what would be enough."""
    with pytest.raises(BakeoffError) as refused:
        plan_budget(spec(hours=0.01), TIMINGS, ITEMS, ACCURACY)
    assert refused.value.code == "hours-too-few"
    enough = float(refused.value.try_.split("`hours = ")[1].split("`")[0])
    bought = plan_budget(spec(hours=enough), TIMINGS, ITEMS, ACCURACY)
    assert bought.contenders == ("m0",)
    assert bought.steps >= time_budget.MIN_STEPS


def test_unbounded_metric_gives_no_power() -> None:
    """An unbounded metric gives no statement about power."""
    loss = MetricInfo("loss", "lower", "nats", 0.0, None)
    assert plan_budget(spec(hours=2), TIMINGS, ITEMS, loss).detectable is None


def test_final_steps_use_remaining_time() -> None:
    """The final trials use the time that the search left."""
    asked = spec(("m0",), steps=100)
    assert slowdown(asked, TIMINGS, ITEMS, took=90.0) == 1.5
    assert slowdown(asked, TIMINGS, ITEMS, took=0.0) == 1.0
    # two methods, 1.5 s a step: 360 s are 120 steps
    assert refit_final_steps(asked, TIMINGS, ITEMS, 360.0, 1.5) == 120
    assert refit_final_steps(asked, TIMINGS, ITEMS, 1e6, 1.5) == 200  # twice the plan at most
    assert refit_final_steps(asked, TIMINGS, ITEMS, 0.0, 1.5) == 50  # half of it at least
    few = {**ITEMS, "train": 800}  # three passes are 150 steps
    assert refit_final_steps(asked, TIMINGS, few, 1e6, 1.5) == 150
    assert time_budget.final_seconds(asked, TIMINGS, ITEMS, 120, 1.5) == {
        "lora": 180.0,
        "m0": 180.0,
    }


def test_deadline_admits_within_grace() -> None:
    """A deadline admits work that ends within its grace period."""
    bought = plan_budget(spec(hours=1), TIMINGS, ITEMS, ACCURACY)
    deadline = Deadline(bought, TIMINGS, lambda: 3600.0)
    assert deadline.allows(0.15 * 3600)
    assert not deadline.allows(0.16 * 3600)


def test_hours_and_steps_exclude_each_other() -> None:
    with pytest.raises(BakeoffError, match="either `steps` or `hours`"):
        spec(hours=1, steps=100)


def test_timings_survive_plain_json() -> None:
    value = {"method": "lora", "load": 1.0, "step": {"1": 2.0, "5": 4.0}, "evaluate": {"1": 0.1},
             "predict": 0.5, "peak_bytes": None, "parameters": 3, "spread": 0.1}  # fmt: skip
    assert Timing.from_json(value).step == {1: 2.0, 5: 4.0}
    assert estimates.Timing.from_json(value).evaluate == {1: 0.1}
