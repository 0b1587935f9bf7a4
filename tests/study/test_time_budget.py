"""What hours allow, from timings made up so that the answer can be worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bakeoff.core.errors import BakeoffError
from bakeoff.core.record import MetricInfo
from bakeoff.study.config import StudySpec, parse_spec
from bakeoff.study.planning import estimate as estimates
from bakeoff.study.planning import time_budget
from bakeoff.study.planning.estimate import (
    BASE,
    HEAD,
    PROBES,
    ROUNDS,
    Timing,
    disk_bytes,
    estimate,
    get_phase,
    price,
    runs_per_replicate,
)
from bakeoff.study.planning.time_budget import (
    BudgetChoice,
    Deadline,
    plan_budget,
    published_promise,
    round_seconds,
    small_margin_warnings,
    with_budget,
)

ACCURACY = MetricInfo("accuracy", "higher", "fraction", 0.0, 1.0)
ITEMS = {"train": 3200, "validation": 100, "test": 400}
"""200 steps of 16 are a pass."""
TEN = tuple(f"m{i}" for i in range(10))


def spec(contenders: tuple[str, ...] = TEN, **budget: Any) -> StudySpec:
    """Return a study that neither tunes nor checks the head."""
    return parse_spec(
        {
            "name": "timed",
            "base": {"model": "somewhere"},
            "data": {"train": "rows.jsonl"},
            "task": {"kind": "classify", "head_learning_rate": 0.01},
            "methods": {"control": "lora", "contenders": list(contenders)},
            "budget": {"batch_size": 16, "validations": 1, "extend": 0, **budget},
            "verdict": {"check_head": False},
        }
    )


def changed(study: StudySpec, **tables: dict[str, Any]) -> StudySpec:
    """Return a study with other values in some tables; a value of None is left out."""
    value = study.model_dump(mode="json", exclude_none=True)
    for name, own in tables.items():
        merged = {**value.get(name, {}), **own}
        value[name] = {k: v for k, v in merged.items() if v is not None}
    return parse_spec(value)


def timing(method: str, step: float = 1.0) -> Timing:
    """Return a method whose lanes cost nothing, whose steps take ``step``, and nothing else."""
    return Timing(method, 0.0, {1: step, 5: step}, {1: 0.0, 5: 0.0}, 0.0, 2**20, 1000, 0.0)


TIMINGS = tuple(timing(m) for m in ("lora", *TEN))


def test_estimate_by_hand() -> None:
    """An estimate matches a hand computation."""
    made = estimate(spec(("m0",), steps=100, seeds=3), TIMINGS, ITEMS, (3,))
    # 30 probe steps. 5 settings x 3 seeds are 15 lanes, one group: 10 steps to the rung, 90 of two
    # settings to the end; lanes are free
    assert [p.wall for p in made.phases] == [60.0, 200.0]
    assert made.seconds == 260.0
    assert made.in_full_seconds == 60 + 200
    assert get_phase(ROUNDS, made).seconds == {"lora": 100.0, "m0": 100.0}
    assert (made.low, made.high) == (260 * 0.75, 260 * 1.25)
    # the second round adds 5 - 3 = 2 seeds, the third 3: each takes all steps once more
    longer = estimate(spec(("m0",), steps=100), TIMINGS, ITEMS, (3, 5, 8))
    assert get_phase(ROUNDS, longer).wall == 3 * 200.0


def test_estimate_splits_large_groups() -> None:
    """More than a full group of lanes are trained one group after another."""
    made = estimate(spec(("m0",), steps=100, seeds=5), TIMINGS, ITEMS, (5,))
    # 25 lanes are two groups to the rung, 10 lanes one to the end
    assert get_phase(ROUNDS, made).seconds["lora"] == 2 * 10 + 90


def test_estimate_shares_workers_except_probes() -> None:
    """An estimate divides work among workers, except for probes."""
    asked = spec(("m0", "m1"), steps=100)
    value = asked.model_dump(mode="json", exclude_none=True) | {"engine": {"workers": 2}}
    made = estimate(parse_spec(value), TIMINGS, ITEMS, (3,))
    assert get_phase(PROBES, made).wall == 90.0
    assert get_phase(ROUNDS, made).wall == 150.0


def test_estimate_includes_lanes_and_evaluation() -> None:
    """An estimate includes lanes, evaluation, extended grids and the scores on test."""
    own = Timing("lora", 2.0, {1: 1.0, 5: 3.0}, {1: 0.1, 5: 0.1}, 0.5, None, 1000, 0.0, general=7.0)
    made = estimate(spec(("m0",), steps=100, seeds=3, extend=2), (own,), ITEMS, (3,))
    # 15 lanes for 10 steps at 8 s, 6 lanes for 90 at 3.5 s, one more setting in 3 lanes for 10
    # steps at 2 s; at each end a load and a validation of 100 items at 0.1 s. In lanes as in steps,
    # 6 lanes take 3.5 times one and 3 lanes twice: 100 answers of validation and 400 of test at
    # 0.5 s, a load and a measurement of forgetting
    assert get_phase(ROUNDS, made).seconds["lora"] == pytest.approx(
        10 * 8 + 90 * 3.5 + 10 * 2 + 3 * (2 + 10) + 3.5 * 50 + 2 * (200 + 7) + 2
    )


def test_estimate_of_lanes_that_do_not_share_steps() -> None:
    """Lanes that take as long as separate trials do so in evaluation, and never longer."""
    own = Timing("lora", 0.0, {1: 1.0, 5: 6.0}, {1: 0.0}, 0.5, None, 1000, 0.0, general=7.0)
    assert (own.lanes_timed, own.lanes_factor(3)) == (5, 3.0)
    asked = changed(spec(("m0",), steps=100, seeds=3, settings=1), task={"kind": "sft"})
    made = estimate(asked, (own,), ITEMS, (3,))
    # answers are generated on test alone; the base's are one trial's
    assert get_phase(ROUNDS, made).seconds["lora"] == 100 * 3.5 + 3 * (400 * 0.5 + 7)
    assert get_phase(BASE, made).wall == 400 * 0.5 + 7
    by_metric = changed(asked, budget={"select_on": "metric"})
    more = estimate(by_metric, (own,), ITEMS, (3,)).seconds - made.seconds
    assert more == pytest.approx(3 * 100 * 0.5)


def test_estimate_of_groups_on_a_cpu() -> None:
    """The device's limit of lanes applies, and the user's before it."""
    own = dataclasses.replace(timing("lora"), most_lanes=8)
    asked = spec(("m0",), steps=100, seeds=3)
    # 15 lanes are two groups to the rung, 6 lanes one to the end
    assert get_phase(ROUNDS, estimate(asked, (own,), ITEMS, (3,))).wall == 2 * 10 + 90
    limited = changed(asked, engine={"lanes": 5})
    assert get_phase(ROUNDS, estimate(limited, (own,), ITEMS, (3,))).wall == 3 * 10 + 2 * 90


def test_estimate_includes_the_head() -> None:
    """The head's rate is tuned once on features, and checked with the slowest contender."""
    timings = tuple(
        Timing(m, 2.0, {1: s, 5: 2 * s}, {1: 0.1, 5: 0.3}, 0.5, None, 1000, 0.0)
        for m, s in (("lora", 1.0), ("m0", 2.0), ("m1", 4.0))
    )
    asked = spec(("m0", "m1"), steps=100)
    plain = estimate(asked, timings, ITEMS, (3,))
    assert [p.name for p in plain.phases] == [PROBES, ROUNDS]
    tuned = estimate(changed(asked, task={"head_learning_rate": None}), timings, ITEMS, (3,))
    # 100 steps of 16 take 1600 of the 3200 rows, and there are 100 of validation
    assert get_phase(HEAD, tuned).wall == pytest.approx(2 + 1700 * 0.1)
    checked = estimate(changed(asked, verdict={"check_head": True}), timings, ITEMS, (3,))
    # 3 lanes take 1.5 times one: 100 steps, a validation of 100 items at 0.2 s, their answers
    expected = {"lora": 2 + 150 + 20 + 75, "m0": 0, "m1": 2 + 600 + 20 + 75}
    assert get_phase(HEAD, checked).seconds == pytest.approx(expected)
    assert checked.seconds == pytest.approx(plain.seconds + sum(expected.values()))
    both = changed(asked, task={"head_learning_rate": None}, verdict={"check_head": True})
    counts = (3.0, 3.0)
    more = price(both, timings, ITEMS, (3,), counts).seconds
    less = price(asked, timings, ITEMS, (3,), counts).seconds
    assert more is not None
    assert less is not None
    assert more - less == pytest.approx(172 + sum(expected.values()))


def test_price_by_hand() -> None:
    """The price counts full runs, and a mean between two looks counts by its share."""
    asked = spec(("m0", "m1"), steps=100)
    assert runs_per_replicate(asked.budget) == pytest.approx(2.3)  # 5 x 0.1 + 2 x 0.9
    assert runs_per_replicate(spec(steps=100, keep=[2, 1]).budget) == pytest.approx(1.6)
    assert runs_per_replicate(spec(steps=100, race="off").budget) == 5
    assert runs_per_replicate(spec(steps=100, settings=1).budget) == 1
    made = price(asked, TIMINGS, ITEMS, (3, 5, 8), (4.0, 6.5))
    assert made.runs == pytest.approx(2.3 * (4 + 4 + 6.5))
    # probes; all of the first round; half of the second of two contenders; half of the third of one
    assert made.seconds == pytest.approx(3 * 30 + 300 + (100 + 2 * 50) + 50)
    assert price(asked, None, ITEMS, (3, 5, 8), (3.0, 3.0)).seconds is None


def test_disk_holds_adapters_and_a_round_of_checkpoints() -> None:
    # 8 adapters; the largest round trains 3 replicates of 5 settings, with three copies each
    assert disk_bytes(spec(steps=100), [10], (3, 5, 8)) == 4 * 10 * (8 + 3 * 3 * 5)
    assert disk_bytes(spec(steps=100, settings=1), [10], (3, 5, 8)) == 4 * 10 * 8
    # 5 settings of 10 billion parameters: one replicate at a time
    assert disk_bytes(spec(steps=100), [10**10], (3, 5, 8)) == 4 * 10**10 * (8 + 3 * 5)


def test_round_seconds_of_open_methods() -> None:
    """A round takes the time of the methods that it adds replicates to."""
    asked = spec(("m0", "m1"), steps=100)
    assert round_seconds(asked, TIMINGS, ITEMS, ["lora", "m1"], 3) == 200.0


def test_surplus_time_buys_looks_then_steps() -> None:
    """Surplus time buys further looks first, then steps."""
    bought = plan_budget(spec(hours=2), TIMINGS, ITEMS, ACCURACY)
    # 11 methods at 30 probe steps and a pass of 200 a round: two rounds take 4730 s, three 6930 s,
    # of 6840; what is left pays 295 steps a round
    assert (bought.settings, bought.looks, bought.dropped) == (5, (3, 5), ())
    assert bought.steps == (6840 // 11 - 30) // 2
    assert bought.passes == pytest.approx(bought.steps / 200)
    assert bought.seconds <= 0.95 * 7200
    most = plan_budget(spec(hours=20), TIMINGS, ITEMS, ACCURACY)
    assert most.looks == (3, 5, 8, 12, 16)
    assert most.steps == 600  # three passes: more would be another question
    assert most.seconds < 20 * 3600 * 0.95


def test_first_look_limits_nothing_else() -> None:
    """The first look alone fits: no further look is planned."""
    bought = plan_budget(spec(hours=0.8), TIMINGS, ITEMS, ACCURACY)
    assert (bought.looks, bought.dropped) == ((3,), ())
    few = plan_budget(spec(("m0", "m1"), hours=0.3), TIMINGS, ITEMS, ACCURACY)
    assert few.looks == (5,)  # with two contenders the first look is at five


def test_timing_counts_against_budget() -> None:
    """The time that timing took counts against the budget."""
    asked = spec(hours=2, seeds=3)
    late = plan_budget(asked, TIMINGS, ITEMS, ACCURACY, spent=1430.0)
    # 5410 s are left: 11 methods at 30 steps and one round
    assert late.steps == 5410 // 11 - 30
    assert late.seconds == pytest.approx(1430 + 11 * (30 + late.steps))


def test_stated_values_kept() -> None:
    """Values that the study file states are kept."""
    bought = plan_budget(spec(hours=2, seeds=4, settings=4), TIMINGS, ITEMS, ACCURACY)
    assert (bought.settings, bought.looks) == (4, (4,))
    bought = plan_budget(spec(hours=20, most=6), TIMINGS, ITEMS, ACCURACY)
    assert bought.looks == (3, 5, 6)


def test_plan_becomes_the_budget() -> None:
    """A study with a plan's budget has its steps, settings, looks and contenders."""
    choice = BudgetChoice(150, 4, (3, 5), ("m0", "m1", "m2"))
    budget = with_budget(spec(hours=2), choice).budget
    assert (budget.hours, budget.steps, budget.settings, budget.most) == (None, 150, 4, 5)
    fixed = with_budget(spec(hours=2, seeds=4), choice._replace(looks=(4,))).budget
    assert (fixed.seeds, fixed.most) == (4, None)


def test_short_time_drops_last_contenders() -> None:
    """Too little time drops contenders from the end of the list."""
    bought = plan_budget(spec(hours=0.5), TIMINGS, ITEMS, ACCURACY)
    # 1710 s: a pass of 200 steps and its probe take 230 s a method
    assert bought.contenders == TEN[:6]
    assert bought.dropped == TEN[6:]
    assert bought.steps >= 200
    assert bought.seconds <= 0.95 * 1800


def test_settings_dropped_before_contenders() -> None:
    """Settings are dropped before contenders are."""
    wide = tuple(
        Timing(m, 0.0, {1: 1.0, 5: 5.0}, {1: 0.0}, 0.0, None, 1000, 0.0) for m in ("lora", *TEN)
    )
    asked = spec(("m0",), hours=0.4, seeds=1)

    def took(settings: int) -> float:
        made = with_budget(asked, BudgetChoice(200, settings, (1,), ("m0",)))
        return estimate(made, wide, ITEMS, (1,)).seconds

    assert took(5) > took(4)
    bought = plan_budget(spec(("m0",), hours=took(4) / 3419, seeds=1), wide, ITEMS, ACCURACY)
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


def test_warning_names_what_limits_the_study() -> None:
    """A test set that is small for the margin is warned of, with the floor of its intervals."""
    asked = spec(("m0",), steps=100)
    promised = published_promise(asked, 100, ACCURACY, (5, 8))
    assert promised is not None
    (text,) = small_margin_warnings(promised, 100, 0.02)
    assert f"no number of seeds narrows an interval below ±{100 * promised.floor:.1f}" in text
    assert "[test-too-small]" in text
    assert small_margin_warnings(promised, 100, promised.last.detectable) == ()
    assert "below 30" in small_margin_warnings(None, 20, 0.02)[0]
    assert small_margin_warnings(None, 40, 0.02) == ()


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
