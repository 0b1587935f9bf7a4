"""Time budget: the steps, settings, rounds and contenders that fit into a number of hours.

Every contender must reach the first look, and every trial have enough steps. For that the plan
first drops settings (down to ``MIN_SETTINGS``), then contenders from the end of the user's list.
Remaining time goes into further looks, then into steps (up to ``MAX_PASSES`` over the training
rows). ``settings`` and a number of ``seeds`` stated in the study file stay as they are; ``most`` is
a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bakeoff.analysis.evidence import small_test_set_warnings
from bakeoff.analysis.group_variance import IntArray, group_df, planned_design_effect
from bakeoff.analysis.promise import Promise, planned_design, promise
from bakeoff.core.errors import PreflightError
from bakeoff.core.format import plural
from bakeoff.core.record import MetricInfo
from bakeoff.study.config import StudySpec, dump_spec, parse_spec
from bakeoff.study.config.budget import USUAL_STEPS, method_name
from bakeoff.study.planning.estimate import Timing, estimate, round_phase
from bakeoff.study.planning.rounds import ROUNDS, planned_looks

TARGET = 0.95
"""Share of the hours that is planned: late is worse than early."""
GRACE = 1.15
"""A trial that would end after this many times the hours is not started."""
MIN_STEPS = 10
"""With fewer steps a result says nothing about a method."""
MIN_SETTINGS = 3
"""The smallest grid of learning rates that has an interior."""
MAX_PASSES = 3.0
FAR_MARGINS = 3.0
"""A detectable difference of this many margins is large: most verdicts will be inconclusive."""


class Deadline(NamedTuple):
    """Time budget of a running study; ``spent`` returns the seconds so far, over all its runs."""

    plan: BudgetPlan
    timings: tuple[Timing, ...]
    spent: Callable[[], float]

    @property
    def seconds(self) -> float:
        """The time budget in seconds."""
        return self.plan.hours * 3600

    def allows(self, seconds: float) -> bool:
        """Return whether work that takes ``seconds`` may still start."""
        return self.spent() + seconds <= GRACE * self.seconds


class BudgetChoice(NamedTuple):
    """Steps, settings, looks (numbers of replicates) and contenders of a study."""

    steps: int
    settings: int
    looks: tuple[int, ...]
    contenders: tuple[str, ...]


@dataclass(frozen=True)
class BudgetPlan:
    """Plan for a time budget: the chosen sizes, the contenders dropped, and what it can detect."""

    hours: float
    steps: int
    settings: int
    looks: tuple[int, ...]
    contenders: tuple[str, ...]
    dropped: tuple[str, ...]
    passes: float
    """The steps as passes over the training rows."""
    seconds: float
    """Expected duration of the study if all contenders have replicates up to the last look."""
    detectable: float | None
    """True difference that is detected in 80 % of such studies, in the metric's unit."""


def plan_budget(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    metric: MetricInfo,
    spent: float = 0.0,
    groups: IntArray | None = None,
) -> BudgetPlan:
    """Return the largest plan that fits the spec's hours, less the seconds ``spent`` on timing.

    ``groups`` are those of the test items.

    Raises:
        PreflightError: ``hours-too-few``, with the hours that the smallest study would take.
    """
    names, hours = spec.methods.contenders, spec.budget.hours
    assert hours is not None
    limit = TARGET * hours * 3600 - spent

    def seconds(size: BudgetChoice) -> float:
        return estimate(with_budget(spec, size), timings, n_items, size.looks).seconds

    def fits(size: BudgetChoice) -> bool:
        return seconds(size) <= limit

    one_pass = n_items["train"] / spec.budget.batch_size
    # one pass, or the usual number of steps where a pass is longer
    enough = max(MIN_STEPS, math.ceil(min(one_pass, USUAL_STEPS)))
    sizes = [
        BudgetChoice(enough, settings, _looks(spec, count)[:1], names[:count])
        for count in range(len(names), 0, -1)
        for settings in _setting_counts(spec)
    ]
    plan = next((size for size in sizes if fits(size)), sizes[-1]._replace(steps=MIN_STEPS))
    if not fits(plan):
        raise _too_few_hours(spec, plan, seconds(plan))
    looks = _looks(spec, len(plan.contenders))
    if plan.steps >= enough:
        more = [plan._replace(looks=looks[: n + 1]) for n in range(len(looks))]
        plan = [size for size in more if fits(size)][-1]
    most = max(enough, math.ceil(MAX_PASSES * one_pass))
    steps = _largest_fitting(lambda n: fits(plan._replace(steps=n)), plan.steps, most)
    plan = plan._replace(steps=steps or plan.steps)
    sized = with_budget(spec, plan)
    promised = published_promise(sized, n_items["test"], metric, plan.looks, groups)
    return BudgetPlan(
        hours,
        **plan._asdict(),
        dropped=names[len(plan.contenders) :],
        passes=plan.steps / one_pass,
        seconds=spent + seconds(plan),
        detectable=None if promised is None else promised.last.detectable,
    )


def describe(plan: BudgetPlan, control: str) -> str:
    """Describe a plan in one sentence, with the contenders that were dropped."""
    replicates = f"up to {plan.looks[-1]}" if len(plan.looks) > 1 else f"{plan.looks[0]}"
    text = (
        f"Time budget {plan.hours:g} h: {plan.settings} settings, {replicates} replicates, about "
        f"{plan.steps:,} steps per run ({plan.passes:.2g} passes over the training rows) for "
        f"{control} and {plural(len(plan.contenders), 'contender')}; at most "
        f"{plan.seconds / 3600:.2g} h expected"
    )
    if plan.detectable is not None:
        text += (
            f"; a true difference of {100 * plan.detectable:.1f} points would be found in "
            "80 % of such studies"
        )
    if plan.dropped:
        text += f"; dropped from the end of the list: {', '.join(plan.dropped)}"
    return text


def round_seconds(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    methods: Sequence[str],
    replicates: int,
) -> float:
    """Return the seconds of a round that adds so many ``replicates`` to each of ``methods``."""
    return round_phase(spec, timings, n_items, methods, replicates).wall


def with_budget(spec: StudySpec, budget: BudgetChoice) -> StudySpec:
    """Return the study with this budget, in steps instead of hours."""
    value = dump_spec(spec)
    value["budget"].pop("hours", None)
    value["budget"] |= {"steps": budget.steps, "settings": budget.settings}
    if spec.budget.seeds == ROUNDS:
        value["budget"]["most"] = budget.looks[-1]
    value["methods"]["contenders"] = list(budget.contenders)
    names = {method_name(n) for n in (spec.methods.control, *budget.contenders)}
    value["method"] = {n: own for n, own in value["method"].items() if n in names}
    return parse_spec(value)


def _looks(spec: StudySpec, n_contenders: int) -> tuple[int, ...]:
    """Return the looks that a study may have: the hours decide, not the price of lanes."""
    return planned_looks(spec.budget, n_contenders, lanes_free=True)


def _setting_counts(spec: StudySpec) -> tuple[int, ...]:
    """Return the numbers of settings to try, largest first."""
    requested = spec.budget.settings
    stated = "settings" in spec.budget.model_fields_set
    if stated or any(own.learning_rates for own in spec.method.values()):
        return (requested,)
    return tuple(range(requested, MIN_SETTINGS - 1, -1))


def published_promise(
    spec: StudySpec,
    n_test: int,
    metric: MetricInfo,
    looks: Sequence[int],
    groups: IntArray | None = None,
) -> Promise | None:
    """Return what a study can show at the published noise of scores of 0 and 1.

    None for other metrics, and for items that are all in one group.
    """
    if (metric.low, metric.high) != (0.0, 1.0) or not n_test:
        return None
    if groups is not None and len(set(groups.tolist())) < 2:
        return None
    budget = spec.budget
    finalists = min(budget.keep[-1], budget.settings) if budget.race == "on" else budget.settings
    design = planned_design(
        n_test,
        len(spec.methods.contenders),
        finalists,
        planned_design_effect(groups),
        group_df(groups, n_test),
    )
    return promise(design, tuple(looks), spec.task.margin)


def small_margin_warnings(promised: Promise | None, n_test: int, margin: float) -> tuple[str, ...]:
    """Return a warning if a test set of this size can hardly show differences of the margin."""
    if few := small_test_set_warnings(n_test):
        return tuple(few)
    if promised is None or promised.last.detectable <= FAR_MARGINS * margin:
        return ()
    limit = (
        f"no number of seeds narrows an interval below ±{100 * promised.floor:.1f} points"
        if promised.floor > margin
        else "more seeds would narrow its intervals"
    )
    return (
        f"The test set is small for the margin: with {n_test:,} items a true difference of "
        f"{100 * promised.last.detectable:.1f} points would be found in 80 % of such studies, the "
        f"margin is {100 * margin:g} points; {limit}. [test-too-small]",
    )


def _too_few_hours(spec: StudySpec, least: BudgetChoice, seconds: float) -> PreflightError:
    wanted = math.ceil(seconds / TARGET / 36) / 100
    return PreflightError(
        "hours-too-few",
        f"A time budget of {spec.budget.hours:g} h is too short on this machine for "
        f"{spec.methods.control} and {least.contenders[0]} with {least.settings} settings, "
        f"{least.looks[0]} replicates and {least.steps} steps each.",
        f"`hours = {wanted:g}` or more, a smaller base, or fewer rows in validation and test "
        "([data.limit]).",
    )


def _largest_fitting(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the largest number from ``low`` to ``high`` that fits; None if ``low`` does not."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
