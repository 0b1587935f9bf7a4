"""Time budget: the steps, settings, seeds and contenders that fit into a number of hours.

To give every trial enough steps, the plan first drops settings (down to ``MIN_SETTINGS``), then
contenders from the end of the user's list. Remaining time goes into steps (up to ``MAX_PASSES``
over the training rows), then into seeds (up to ``MAX_SEEDS``). ``settings`` and ``seeds`` stated in
the study file stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bakeoff.analysis.evidence import small_test_set_warnings
from bakeoff.analysis.power import StudyDesign, detectable_difference, items_needed
from bakeoff.core.errors import PreflightError
from bakeoff.core.record import MetricInfo
from bakeoff.study.config import StudySpec, dump_spec, parse_spec
from bakeoff.study.config.budget import USUAL_STEPS, method_name
from bakeoff.study.planning.estimate import (
    FINAL,
    SEARCH,
    PhaseEstimate,
    Timing,
    estimate,
    get_phase,
)

TARGET = 0.95
"""Share of the hours that is planned: late is worse than early."""
GRACE = 1.15
"""A trial that would end after this many times the hours is not started."""
MIN_STEPS = 10
"""With fewer steps a result says nothing about a method."""
MIN_SETTINGS = 3
"""The smallest grid of learning rates that has an interior."""
MAX_PASSES = 3.0
MAX_SEEDS = 10
FAR_MARGINS = 3.0
"""A detectable difference of this many margins is large: most verdicts will be inconclusive."""
MAX_STRETCH = 2.0
"""After the search, the steps of final trials change by at most this factor, up or down."""


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
    """Steps, settings, seeds and contenders of a study."""

    steps: int
    settings: int
    seeds: int
    contenders: tuple[str, ...]

    @classmethod
    def from_spec(cls, spec: StudySpec) -> BudgetChoice:
        """Return the budget of a study."""
        b = spec.budget
        return cls(b.planned_steps, b.settings, b.seeds, spec.methods.contenders)


@dataclass(frozen=True)
class BudgetPlan:
    """Plan for a time budget: the chosen sizes, the contenders dropped, and what it can detect."""

    hours: float
    steps: int
    settings: int
    seeds: int
    contenders: tuple[str, ...]
    dropped: tuple[str, ...]
    passes: float
    """The steps as passes over the training rows."""
    seconds: float
    """Expected duration of the study."""
    detectable: float | None
    """True difference that is detected in 80 % of such studies, in the metric's unit."""


def plan_budget(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    metric: MetricInfo,
    spent: float = 0.0,
) -> BudgetPlan:
    """Return the largest plan that fits the spec's hours, less the seconds ``spent`` on timing.

    Raises:
        PreflightError: ``hours-too-few``, with the hours that the smallest study would take.
    """
    names, hours = spec.methods.contenders, spec.budget.hours
    assert hours is not None
    limit = TARGET * hours * 3600 - spent

    def seconds(size: BudgetChoice) -> float:
        return estimate(with_budget(spec, size), timings, n_items).seconds

    def most_steps(size: BudgetChoice) -> int | None:
        return _largest_fitting(lambda n: seconds(size._replace(steps=n)) <= limit, MIN_STEPS, most)

    one_pass = n_items["train"] / spec.budget.batch_size
    # one pass, or the usual number of steps where a pass is longer
    enough = max(MIN_STEPS, math.ceil(min(one_pass, USUAL_STEPS)))
    most = max(enough, math.ceil(MAX_PASSES * one_pass))
    sizes = [
        BudgetChoice(MIN_STEPS, settings, spec.budget.seeds, names[:count])
        for count in range(len(names), 0, -1)
        for settings in _setting_counts(spec)
    ]
    for size in sizes:
        steps = most_steps(size)
        if steps is not None and (steps >= enough or size is sizes[-1]):
            plan = size._replace(steps=steps)
            break
    else:
        raise _too_few_hours(spec, sizes[-1], seconds(sizes[-1]))
    if "seeds" not in spec.budget.model_fields_set:
        more = _largest_fitting(
            lambda n: seconds(plan._replace(seeds=n)) <= limit, plan.seeds, MAX_SEEDS
        )
        plan = plan._replace(seeds=more or plan.seeds)
    return BudgetPlan(
        hours,
        **plan._asdict(),
        dropped=names[len(plan.contenders) :],
        passes=plan.steps / one_pass,
        seconds=spent + seconds(plan),
        detectable=expected_detectable(n_items["test"], plan.seeds, len(plan.contenders), metric),
    )


def describe(plan: BudgetPlan, control: str) -> str:
    """Describe a plan in one sentence, with the contenders that were dropped."""
    text = (
        f"Time budget {plan.hours:g} h: {plan.settings} settings, {plan.seeds} seeds, about "
        f"{plan.steps:,} steps per run ({plan.passes:.2g} passes over the training rows) for "
        f"{control} and {len(plan.contenders)} contenders; {plan.seconds / 3600:.2g} h expected"
    )
    if plan.detectable is not None:
        text += (
            f"; a true difference of {100 * plan.detectable:.1f} points would be found in "
            "80 % of such studies"
        )
    if plan.dropped:
        text += f"; dropped from the end of the list: {', '.join(plan.dropped)}"
    return text


def refit_final_steps(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    left: float,
    pace: float,
) -> int:
    """Return the steps of the final trials that fill the ``left`` seconds.

    ``pace`` is the ratio of the search's actual to its expected duration.
    """
    planned = spec.budget.planned_steps
    low = max(2, math.ceil(planned / MAX_STRETCH))
    most = max(planned, math.ceil(MAX_PASSES * n_items["train"] / spec.budget.batch_size))

    def fits(steps: int) -> bool:
        return pace * _final_phase(spec, timings, n_items, steps).wall <= left

    return _largest_fitting(fits, low, min(math.floor(planned * MAX_STRETCH), most)) or low


def slowdown(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], took: float
) -> float:
    """Return the ratio of the search's actual to its expected seconds; 1 without a search."""
    search = get_phase(SEARCH, estimate(spec, timings, n_items))
    expected = sum(search.seconds.values())
    return took / expected if took > 0 and expected > 0 else 1.0


def final_seconds(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    steps: int,
    pace: float,
) -> dict[str, float]:
    """Return the expected seconds of each method's final trials at ``steps`` steps."""
    final = _final_phase(spec, timings, n_items, steps)
    return {method: pace * seconds for method, seconds in final.seconds.items()}


def _final_phase(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], steps: int
) -> PhaseEstimate:
    changed = with_budget(spec, BudgetChoice.from_spec(spec)._replace(steps=steps))
    return get_phase(FINAL, estimate(changed, timings, n_items))


def with_budget(spec: StudySpec, budget: BudgetChoice) -> StudySpec:
    """Return the study with this budget, in steps instead of hours."""
    value = dump_spec(spec)
    value["budget"].pop("hours", None)
    value["budget"] |= {"steps": budget.steps, "settings": budget.settings, "seeds": budget.seeds}
    value["methods"]["contenders"] = list(budget.contenders)
    names = {method_name(n) for n in (spec.methods.control, *budget.contenders)}
    value["method"] = {n: own for n, own in value["method"].items() if n in names}
    return parse_spec(value)


def _setting_counts(spec: StudySpec) -> tuple[int, ...]:
    """Return the numbers of settings to try, largest first."""
    requested = spec.budget.settings
    stated = "settings" in spec.budget.model_fields_set
    if stated or any(own.learning_rates for own in spec.method.values()):
        return (requested,)
    return tuple(range(requested, MIN_SETTINGS - 1, -1))


def expected_detectable(
    items: int, seeds: int, contenders: int, metric: MetricInfo
) -> float | None:
    """Return the difference that a study can detect; None for metrics without published noise."""
    if (metric.low, metric.high) != (0.0, 1.0):
        return None
    return detectable_difference(StudyDesign(items, seeds, contenders))


def small_margin_warnings(spec: StudySpec, items: int, metric: MetricInfo) -> tuple[str, ...]:
    """Return a warning if a test set of this size can hardly show differences of the margin."""
    if few := small_test_set_warnings(items):
        return tuple(few)
    seeds, contenders, margin = spec.budget.seeds, len(spec.methods.contenders), spec.task.margin
    difference = expected_detectable(items, seeds, contenders, metric)
    if difference is None or difference <= FAR_MARGINS * margin:
        return ()
    needed = items_needed(StudyDesign(items, seeds, contenders), margin)
    remedy = (
        f"no number of items shows the margin at {seeds} seeds"
        if needed is None
        else f"about {needed:,} items would show the margin"
    )
    return (
        f"The test set is small for the margin: with {items:,} items a true difference of "
        f"{100 * difference:.1f} points would be found in 80 % of such studies, the margin is "
        f"{100 * margin:g} points; {remedy}. [test-too-small]",
    )


def _too_few_hours(spec: StudySpec, least: BudgetChoice, seconds: float) -> PreflightError:
    wanted = math.ceil(seconds / TARGET / 36) / 100
    return PreflightError(
        "hours-too-few",
        f"A time budget of {spec.budget.hours:g} h is too short on this machine for "
        f"{spec.methods.control} and {least.contenders[0]} with {least.settings} settings, "
        f"{least.seeds} seeds and {least.steps} steps each.",
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
