"""From hours to a study: which steps, settings, seeds and contenders fit into them. Pure.

Stands above ``estimate`` in the study half: timings of each method in, a study that takes as long
as the user has out. What it gives up, in this order, until every trial gets enough steps: settings
beyond ``FEWEST_SETTINGS``, then contenders from the end of the user's list. What it spends more
time on: steps up to ``MOST_PASSES`` over the training rows, then seeds up to ``MOST_SEEDS``. What
the study file states itself (``settings``, ``seeds``) stays.
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
from bakeoff.study.config.budget import BudgetSpec, method_name
from bakeoff.study.planning.estimate import (
    FINAL,
    SEARCH,
    PhaseEstimate,
    Timing,
    estimate,
    get_phase,
)

TARGET = 0.95
"""Share of the hours that is planned for: late is worse than early."""
GRACE = 1.15
"""A trial that would end later than so many times the hours is not begun."""
MIN_STEPS = 10
"""Fewer steps than that say nothing of a method."""
MIN_SETTINGS = 3
"""The fewest learning rates of which one lies inside."""
MAX_PASSES = 3.0
MAX_SEEDS = 10
MAX_MARGINS = 3.0
"""So many times the margin is far: most verdicts will be inconclusive."""
MAX_STRETCH = 2.0
"""After the search, final trials get at most so many times the planned steps, or that much less."""


class Deadline(NamedTuple):
    """A study's hours while it runs; ``spent`` tells the seconds so far, of earlier runs too."""

    fit: BudgetPlan
    timings: tuple[Timing, ...]
    spent: Callable[[], float]

    @property
    def seconds(self) -> float:
        """The hours in seconds."""
        return self.fit.hours * 3600

    def allows(self, seconds: float) -> bool:
        """Tell whether something that takes so long may still begin."""
        return self.spent() + seconds <= GRACE * self.seconds


class BudgetChoice(NamedTuple):
    """What is chosen."""

    steps: int
    settings: int
    seeds: int
    contenders: tuple[str, ...]

    @classmethod
    def of(cls, spec: StudySpec) -> BudgetChoice:
        """Return what a study has."""
        b = spec.budget
        return cls(b.steps, b.settings, b.seeds, spec.methods.contenders)


@dataclass(frozen=True)
class BudgetPlan:
    """What ``hours`` buy: the chosen budget, who does not compete, and what it can show."""

    hours: float
    steps: int
    settings: int
    seeds: int
    contenders: tuple[str, ...]
    dropped: tuple[str, ...]
    passes: float
    """Steps in passes over the training rows."""
    seconds: float
    """What the study is expected to take."""
    detectable: float | None
    """True difference that is found in 80 % of such studies, in the metric's unit."""


def plan_budget(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    metric: MetricInfo,
    spent: float = 0.0,
) -> BudgetPlan:
    """Return the largest study that takes the spec's hours, less the seconds ``spent`` on timing.

    Raises:
        PreflightError: ``hours-too-few``, with the hours that the smallest one would take.
    """
    names, hours = spec.methods.contenders, spec.budget.hours
    assert hours is not None
    limit = TARGET * hours * 3600 - spent

    def seconds(given: BudgetChoice) -> float:
        return estimate(with_budget(spec, given), timings, n_items).seconds

    def most_steps(size: BudgetChoice) -> int | None:
        return _largest_fitting(lambda n: seconds(size._replace(steps=n)) <= limit, MIN_STEPS, most)

    one_pass = n_items["train"] / spec.budget.batch_size
    # a pass, or the steps that are usual where a pass is longer than that
    enough = max(MIN_STEPS, math.ceil(min(one_pass, BudgetSpec().steps)))
    most = max(enough, math.ceil(MAX_PASSES * one_pass))
    sizes = [
        BudgetChoice(MIN_STEPS, settings, spec.budget.seeds, names[:count])
        for count in range(len(names), 0, -1)
        for settings in _setting_counts(spec)
    ]
    for size in sizes:
        steps = most_steps(size)
        if steps is not None and (steps >= enough or size is sizes[-1]):
            found = size._replace(steps=steps)
            break
    else:
        raise _too_few_hours(spec, sizes[-1], seconds(sizes[-1]))
    if "seeds" not in spec.budget.model_fields_set:
        more = _largest_fitting(
            lambda n: seconds(found._replace(seeds=n)) <= limit, found.seeds, MAX_SEEDS
        )
        found = found._replace(seeds=more or found.seeds)
    return BudgetPlan(
        hours,
        **found._asdict(),
        dropped=names[len(found.contenders) :],
        passes=found.steps / one_pass,
        seconds=spent + seconds(found),
        detectable=expected_detectable(n_items["test"], found.seeds, len(found.contenders), metric),
    )


def describe(bought: BudgetPlan, control: str) -> str:
    """Say what the hours buy, and who does not compete."""
    text = (
        f"{bought.hours:g} hours buy {control} and {len(bought.contenders)} contenders "
        f"{bought.settings} settings, {bought.seeds} seeds and about {bought.steps:,} steps a run "
        f"({bought.passes:.2g} passes over the training rows; {bought.seconds / 3600:.2g} hours "
        "expected)"
    )
    if bought.detectable is not None:
        text += (
            f"; a true difference of {100 * bought.detectable:.1f} points would be found in "
            "80 % of such studies"
        )
    if bought.dropped:
        text += f"; left out, from the end of the list: {', '.join(bought.dropped)}"
    return text


def refit_final_steps(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    left: float,
    pace: float,
) -> int:
    """Return the steps of the final trials that fill the ``left`` seconds.

    ``pace`` is what the search took over what it was expected to take.
    """
    planned = spec.budget.steps
    low = max(2, math.ceil(planned / MAX_STRETCH))
    most = max(planned, math.ceil(MAX_PASSES * n_items["train"] / spec.budget.batch_size))

    def fits(steps: int) -> bool:
        return pace * _final_phase(spec, timings, n_items, steps).wall <= left

    return _largest_fitting(fits, low, min(math.floor(planned * MAX_STRETCH), most)) or low


def slowdown(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], took: float
) -> float:
    """Return what the search took, all trials added up, over what was expected; 1 for no search."""
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
    """Return the seconds of each method's final trials at so many steps."""
    final = _final_phase(spec, timings, n_items, steps)
    return {method: pace * seconds for method, seconds in final.seconds.items()}


def _final_phase(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], steps: int
) -> PhaseEstimate:
    made = with_budget(spec, BudgetChoice.of(spec)._replace(steps=steps))
    return get_phase(FINAL, estimate(made, timings, n_items))


def with_budget(spec: StudySpec, given: BudgetChoice) -> StudySpec:
    """Return the study in steps instead of hours, with this budget and these contenders."""
    value = dump_spec(spec)
    value["budget"].pop("hours", None)
    value["budget"] |= {"steps": given.steps, "settings": given.settings, "seeds": given.seeds}
    value["methods"]["contenders"] = list(given.contenders)
    left = {method_name(n) for n in (spec.methods.control, *given.contenders)}
    value["method"] = {n: own for n, own in value["method"].items() if n in left}
    return parse_spec(value)


def _setting_counts(spec: StudySpec) -> tuple[int, ...]:
    """Return the numbers of settings that may be tried, most first."""
    asked = spec.budget.settings
    stated = "settings" in spec.budget.model_fields_set
    if stated or any(own.learning_rates for own in spec.method.values()):
        return (asked,)
    return tuple(range(asked, MIN_SETTINGS - 1, -1))


def expected_detectable(
    items: int, seeds: int, contenders: int, metric: MetricInfo
) -> float | None:
    """Return the difference that a study can show; None where nothing is published to go by."""
    if (metric.low, metric.high) != (0.0, 1.0):
        return None
    return detectable_difference(StudyDesign(items, seeds, contenders))


def small_margin_warnings(spec: StudySpec, items: int, metric: MetricInfo) -> tuple[str, ...]:
    """Return a sentence where a test set of so many items can hardly show the study's margin."""
    if few := small_test_set_warnings(items):
        return tuple(few)
    seeds, contenders, margin = spec.budget.seeds, len(spec.methods.contenders), spec.task.margin
    shown = expected_detectable(items, seeds, contenders, metric)
    if shown is None or shown <= MAX_MARGINS * margin:
        return ()
    needed = items_needed(StudyDesign(items, seeds, contenders), margin)
    wanted = (
        f"no number of items shows the margin at {seeds} seeds"
        if needed is None
        else f"about {needed:,} items would show the margin"
    )
    return (
        f"The test set is small for the margin: with {items:,} items a true difference of "
        f"{100 * shown:.1f} points would be found in 80 % of such studies, the margin is "
        f"{100 * margin:g} points; {wanted}. [test-too-small]",
    )


def _too_few_hours(spec: StudySpec, least: BudgetChoice, seconds: float) -> PreflightError:
    wanted = math.ceil(seconds / TARGET / 36) / 100
    return PreflightError(
        "hours-too-few",
        f"In {spec.budget.hours:g} hours this machine cannot give {spec.methods.control} and "
        f"{least.contenders[0]} {least.settings} settings, {least.seeds} seeds and {least.steps} "
        "steps each.",
        f"`hours = {wanted:g}` or more, a smaller base, or fewer rows in validation and test "
        "([data.limit]).",
    )


def _largest_fitting(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the largest number from ``low`` to ``high`` that fits, None where ``low`` does not."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
