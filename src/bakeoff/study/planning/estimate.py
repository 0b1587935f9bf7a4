"""Estimate of a study's duration, memory and disk use from a few timed steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeoff.study.config import StudySpec
from bakeoff.study.config.budget import method_name
from bakeoff.study.planning import trials

RELATIVE_ERROR = 0.25
"""Relative error beyond that of the timed steps: other sequence lengths, other machine load."""
PROBE_BUILDS, PROBE_STEPS = 6, 30
"""Model builds and training steps of a method's parity probe and cost probe together."""


PROBES, SEARCH, FINAL = "cost probes", "search", "final"


@dataclass(frozen=True)
class Timing:
    """Timing of one method on this machine, in seconds.

    ``step`` and ``evaluate`` (of one validation item) are by number of lanes.
    """

    method: str
    load: float
    step: Mapping[int, float]
    evaluate: Mapping[int, float]
    predict: float
    peak_bytes: int | None
    parameters: int
    spread: float
    """Standard deviation of the timed steps over their mean."""
    general: float = 0.0
    """Seconds to measure forgetting, per trial."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        """Rebuild a timing from plain JSON values."""
        by_lanes = {k: {int(n): s for n, s in value[k].items()} for k in ("step", "evaluate")}
        return cls(**{**value, **by_lanes})

    @classmethod
    def from_measurement(cls, method: str, value: Mapping[str, Any]) -> Timing:
        """Build a timing from the result of the timing job."""
        steps = [s / value["step"][k] for k, seconds in value["steps"].items() for s in seconds]
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
            value.get("general", 0.0),
        )


@dataclass(frozen=True)
class PhaseEstimate:
    """Expected seconds of one phase: of each method, and wall-clock."""

    name: str
    seconds: Mapping[str, float]
    wall: float


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of a study with their range, its peak memory and its disk space."""

    seconds: float
    low: float
    high: float
    phases: tuple[PhaseEstimate, ...]
    in_full_seconds: float
    """Seconds of the same study without racing."""
    peak_bytes: int | None
    disk_bytes: int


def get_phase(name: str, estimate: Estimate) -> PhaseEstimate:
    """Return one phase of an estimate."""
    return next(p for p in estimate.phases if p.name == name)


def estimate(spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int]) -> Estimate:
    """Estimate a study; racing is assumed to stop settings, but no method as a whole."""
    phases = _estimate_phases(spec, timings, n_items, trials.rung_steps(spec.budget))
    full = _estimate_phases(spec, timings, n_items, ())
    seconds = sum(p.wall for p in phases)
    worst = max((t.spread for t in timings), default=0.0)
    error = math.hypot(RELATIVE_ERROR, worst)
    peaks = [t.peak_bytes for t in timings if t.peak_bytes is not None]
    return Estimate(
        seconds,
        seconds * (1 - min(error, 0.9)),
        seconds * (1 + error),
        phases,
        sum(p.wall for p in full),
        max(peaks) * spec.engine.workers if peaks else None,
        disk_bytes(spec, [t.parameters for t in timings]),
    )


def _estimate_phases(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    rungs: tuple[int, ...],
) -> tuple[PhaseEstimate, ...]:
    names = {method_name(n) for n in spec.method_names}
    used = [t for t in timings if t.method in names]
    workers = spec.engine.workers
    return (
        _combine_methods(
            PROBES, {t.method: _probe_seconds(t) for t in used}, 1
        ),  # they run one at a time
        _combine_methods(
            SEARCH, {t.method: _search_seconds(t, spec, n_items, rungs) for t in used}, workers
        ),
        _combine_methods(
            FINAL, {t.method: _final_seconds(t, spec, n_items) for t in used}, workers
        ),
    )


def _combine_methods(name: str, seconds: Mapping[str, float], workers: int) -> PhaseEstimate:
    wall = max(sum(seconds.values()) / workers, max(seconds.values(), default=0.0))
    return PhaseEstimate(name, seconds, wall)


def _probe_seconds(t: Timing) -> float:
    return PROBE_BUILDS * t.load + PROBE_STEPS * _seconds_at(t.step, 1)


def _search_seconds(
    t: Timing, spec: StudySpec, n_items: Mapping[str, int], rungs: tuple[int, ...]
) -> float:
    """Return the seconds of a method's search, segment by segment from rung to rung."""
    total, start = 0.0, 0
    lanes = spec.budget.settings
    for number, stop in enumerate(rungs or (spec.budget.planned_steps,)):
        steps, items = stop - start, n_items["validation"]
        total += (
            t.load + steps * _seconds_at(t.step, lanes) + items * _seconds_at(t.evaluate, lanes)
        )
        if stop == (rungs or (spec.budget.planned_steps,))[-1]:
            total += items * t.predict * lanes
        lanes, start = min(lanes, 2 if number == 0 else 1), stop
    return total


def _final_seconds(t: Timing, spec: StudySpec, n_items: Mapping[str, int]) -> float:
    b, seeds = spec.budget, spec.budget.seeds
    evaluations = b.validations * n_items["validation"] * _seconds_at(t.evaluate, seeds)
    answers = n_items["test"] * t.predict * seeds
    steps = b.planned_steps * _seconds_at(t.step, seeds)
    return seeds * (t.load + t.general) + steps + evaluations + answers


def _seconds_at(by_lanes: Mapping[int, float], lanes: int) -> float:
    """Interpolate seconds linearly between the smallest and the largest timed number of lanes."""
    (few, low), (many, high) = min(by_lanes.items()), max(by_lanes.items())
    if few == many:
        return low * lanes / few
    return max(low * 0.5, low + (high - low) * (lanes - few) / (many - few))


def disk_bytes(spec: StudySpec, parameters: Iterable[int]) -> int:
    """Return the most bytes that a study's trials take on disk, from trainable parameters.

    A final trial keeps one fp32 adapter. During the search each setting has a checkpoint at a rung,
    of weights and two optimizer moments; checkpoints are deleted before the final phase.
    """
    checkpoints = 3 * spec.budget.settings if trials.rung_steps(spec.budget) else 0
    return sum(4 * n * max(spec.budget.seeds, checkpoints) for n in parameters)
