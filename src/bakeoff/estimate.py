"""What a study will take, from a few timed steps; and what fits into a budget in hours. Pure.

Stands beside ``plan`` in the study half: timings in (``timing``), seconds, bytes and a spec whose
steps, settings, seeds and contenders fit out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeoff import plan
from bakeoff.errors import PreflightError
from bakeoff.spec import StudySpec

ERROR = 0.25
"""Share of the estimate that the timed steps do not tell: other lengths, another load."""
PROBE_BUILDS, PROBE_STEPS = 6, 30
"""Builds and steps of a method's parity probe and cost probe together."""
FEWEST_STEPS = 50
"""A budget in hours gives up settings and contenders before it trains for fewer steps."""
MOST_PASSES = 10
"""... and buys seeds rather than more passes over the training data."""
FEWEST_SETTINGS, MOST_SEEDS = 3, 5
FILL = 0.93
"""Share of the hours that is planned: the rest is for what an estimate does not see."""


@dataclass(frozen=True)
class Timing:
    """One method on this machine; seconds by number of lanes, see ``timing.measure``."""

    method: str
    load: float
    step: Mapping[int, float]
    evaluate: Mapping[int, float]
    predict: float
    peak_bytes: int | None
    parameters: int
    spread: float
    """Standard deviation of the timed steps over their mean."""

    @classmethod
    def of(cls, method: str, value: Mapping[str, Any]) -> Timing:
        """Read what the timing process returned."""
        steps = [s / value["step"][k] for k, own in value["steps"].items() for s in own]
        mean = sum(steps) / len(steps)
        return cls(
            method,
            value["load"],
            {int(k): v for k, v in value["step"].items()},
            {int(k): v for k, v in value["evaluate"].items()},
            value["predict"],
            value["peak"],
            value["parameters"],
            math.sqrt(sum((s - mean) ** 2 for s in steps) / len(steps)) / mean,
        )


@dataclass(frozen=True)
class Phase:
    """Seconds of one phase by method."""

    name: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """Seconds of a study with the range that they may be off by, its peak bytes and disk bytes."""

    seconds: float
    low: float
    high: float
    phases: tuple[Phase, ...]
    in_full_seconds: float
    """The same without the race."""
    peak_bytes: int | None
    disk_bytes: int


def estimate(spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int]) -> Estimate:
    """Return what a study takes; the race is taken to stop settings, and no method as a whole."""
    phases = _phases(spec, timings, n_items, plan.rungs(spec.budget))
    full = _phases(spec, timings, n_items, ())
    seconds = sum(_wall(p, spec.engine.workers) for p in phases)
    worst = max((t.spread for t in timings), default=0.0)
    error = math.hypot(ERROR, worst)
    peaks = [t.peak_bytes for t in timings if t.peak_bytes is not None]
    return Estimate(
        seconds,
        seconds * (1 - min(error, 0.9)),
        seconds * (1 + error),
        phases,
        sum(_wall(p, spec.engine.workers) for p in full),
        max(peaks) * spec.engine.workers if peaks else None,
        _disk(spec, timings),
    )


def fit(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], hours: float
) -> StudySpec:
    """Return the study that fits into ``hours``: as many steps as do, then seeds.

    Where too few steps would fit, settings are given up first, then contenders from the last.

    Raises:
        PreflightError: ``hours-too-few``: not even the control and one contender fit.
    """
    seconds = 3600 * hours * FILL
    contenders = list(spec.methods.contenders)
    # rates that the user listed are as many as there are settings
    listed = any(own.learning_rates for own in spec.method.values())
    few = spec.budget.settings if listed else min(spec.budget.settings, FEWEST_SETTINGS)
    for settings in sorted({spec.budget.settings, few}, reverse=True):
        steps = _steps_in(_with(spec, contenders, settings), timings, n_items, seconds)
        if steps >= FEWEST_STEPS:
            return _filled(_with(spec, contenders, settings, steps), timings, n_items, seconds)
    while len(contenders) > 1:
        contenders.pop()
        steps = _steps_in(_with(spec, contenders, few), timings, n_items, seconds)
        if steps >= FEWEST_STEPS:
            return _filled(_with(spec, contenders, few, steps), timings, n_items, seconds)
    least = estimate(_with(spec, contenders, few, FEWEST_STEPS), timings, n_items)
    raise PreflightError(
        "hours-too-few",
        f"{FEWEST_STEPS} steps of the control and one contender take about "
        f"{least.seconds / 3600:.2g} hours; budget.hours is {hours:g}.",
        f"budget.hours = {math.ceil(least.seconds / FILL / 360) / 10:g}, or a smaller base.",
    )


def _filled(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], seconds: float
) -> StudySpec:
    """Turn steps beyond ``MOST_PASSES`` over the data into seeds."""
    most = max(FEWEST_STEPS, MOST_PASSES * n_items["train"] // spec.budget.batch_size)
    if spec.budget.steps <= most:
        return spec
    for seeds in range(MOST_SEEDS, spec.budget.seeds, -1):
        tried = _budget(spec, seeds=seeds, steps=most)
        if estimate(tried, timings, n_items).seconds <= seconds:
            return tried
    return _budget(spec, steps=most)


def _steps_in(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], seconds: float
) -> int:
    """Return the most steps that fit into ``seconds``: the estimate grows with them."""
    low, high = 0, 1_000_000
    while low < high:
        middle = (low + high + 1) // 2
        fits = estimate(_budget(spec, steps=max(2, middle)), timings, n_items).seconds <= seconds
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _with(
    spec: StudySpec, contenders: Sequence[str], settings: int, steps: int | None = None
) -> StudySpec:
    methods = spec.methods.model_copy(update={"contenders": tuple(contenders)})
    kept = {Path(n).name.removesuffix(".toml") for n in (methods.control, *contenders)}
    own = {name: given for name, given in spec.method.items() if name in kept}
    budget = {"settings": settings} | ({} if steps is None else {"steps": steps})
    return _budget(spec.model_copy(update={"methods": methods, "method": own}), **budget)


def _budget(spec: StudySpec, **changes: int) -> StudySpec:
    return spec.model_copy(update={"budget": spec.budget.model_copy(update=changes)})


def _phases(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    rungs: tuple[int, ...],
) -> tuple[Phase, ...]:
    names = {Path(n).name.removesuffix(".toml") for n in spec.method_names}
    own = [t for t in timings if t.method in names]
    return (
        Phase("cost probes", {t.method: _probe(t) for t in own}),
        Phase("search", {t.method: _search(t, spec, n_items, rungs) for t in own}),
        Phase("final", {t.method: _final(t, spec, n_items) for t in own}),
    )


def _probe(t: Timing) -> float:
    return PROBE_BUILDS * t.load + PROBE_STEPS * _at(t.step, 1)


def _search(
    t: Timing, spec: StudySpec, n_items: Mapping[str, int], rungs: tuple[int, ...]
) -> float:
    """Return the seconds of a method's search: laps from rung to rung, or one to the end."""
    total, start = 0.0, 0
    lanes = spec.budget.settings
    for number, stop in enumerate(rungs or (spec.budget.steps,)):
        steps, items = stop - start, n_items["validation"]
        total += t.load + steps * _at(t.step, lanes) + items * _at(t.evaluate, lanes)
        if stop == (rungs or (spec.budget.steps,))[-1]:
            total += items * t.predict * lanes
        lanes, start = min(lanes, 2 if number == 0 else 1), stop
    return total


def _final(t: Timing, spec: StudySpec, n_items: Mapping[str, int]) -> float:
    b, seeds = spec.budget, spec.budget.seeds
    evaluations = b.validations * n_items["validation"] * _at(t.evaluate, seeds)
    answers = n_items["test"] * t.predict * seeds
    return seeds * t.load + b.steps * _at(t.step, seeds) + evaluations + answers


def _at(by_lanes: Mapping[int, float], lanes: int) -> float:
    """Return seconds at a number of lanes: the line through the two that were timed."""
    (few, low), (many, high) = min(by_lanes.items()), max(by_lanes.items())
    if few == many:
        return low * lanes / few
    return max(low * 0.5, low + (high - low) * (lanes - few) / (many - few))


def _wall(phase: Phase, workers: int) -> float:
    """Return a phase's wall time; probes run one at a time."""
    total = sum(phase.seconds.values())
    if phase.name == "cost probes" or not phase.seconds:
        return total
    return max(total / workers, max(phase.seconds.values()))


def _disk(spec: StudySpec, timings: Sequence[Timing]) -> int:
    """Return bytes: an fp32 adapter a final trial, three copies of it for each state at a rung."""
    states = 3 * min(2, spec.budget.settings)
    return sum(4 * t.parameters * (spec.budget.seeds + states) for t in timings)
