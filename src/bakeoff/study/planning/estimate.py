"""Estimate of a study's work, duration, memory and disk use; durations from a few timed steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bakeoff.study.config import StudySpec
from bakeoff.study.config.budget import BudgetSpec, method_name
from bakeoff.study.config.inputs import JOINT
from bakeoff.study.planning.trials import MIN_RATES, MOST_LANES, rung_steps
from bakeoff.tasks import task_class

RELATIVE_ERROR = 0.25
"""Relative error beyond that of the timed steps: other sequence lengths, other machine load."""
PROBE_BUILDS, PROBE_STEPS = 5, 30
"""Set-ups and training steps of a method's cost probe, the comparison of accelerators included."""

CHECKPOINT_BYTES = 8 * 2**30
"""Most bytes of a method's checkpoints at a rung; more replicates are trained one batch after
another."""
EXTENSIONS = 1
"""Settings beyond the edge of its grid that a replicate is assumed to try, if it may."""
HEAD_VALIDATION_ROWS = 1_000
"""Most validation rows on which the rate of a new output layer is tuned."""
HEAD_RATES_CHECKED = 3
"""Rates of the output layer at which the control and a contender are trained after the rounds."""
PROBES, ROUNDS, BASE, HEAD = "cost probes", "rounds", "base model", "output layer"


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
    most_lanes: int | None = None
    """Most lanes of a group on this device, None: ``MOST_LANES``."""

    @property
    def lanes_timed(self) -> int:
        """Number of lanes in the largest timed group."""
        return max(self.step)

    @property
    def lanes_ratio(self) -> float:
        """Duration of a step of the largest timed group, in steps of a single lane."""
        return self.lanes_factor(self.lanes_timed)

    def lanes_factor(self, lanes: int) -> float:
        """Return the duration of work of ``lanes`` lanes together, in that of a single one.

        It is that of training steps: evaluation shares them in the same way.
        """
        return min(float(lanes), _seconds_at(self.step, lanes) / _seconds_at(self.step, 1))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        """Rebuild a timing from plain JSON values."""
        by_lanes = {k: {int(n): s for n, s in value[k].items()} for k in ("step", "evaluate")}
        return cls(**{**value, **by_lanes})

    @classmethod
    def from_measurement(
        cls, method: str, value: Mapping[str, Any], most_lanes: int | None = None
    ) -> Timing:
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
            most_lanes,
        )


@dataclass(frozen=True)
class PhaseEstimate:
    """Expected seconds of one phase: of each method, and wall-clock."""

    name: str
    seconds: Mapping[str, float]
    wall: float


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of a study with their range, its peak memory and its disk space.

    The study is the longest that it can be: all methods have replicates up to the last look.
    """

    seconds: float
    low: float
    high: float
    phases: tuple[PhaseEstimate, ...]
    in_full_seconds: float
    """Seconds of the same study without racing."""
    peak_bytes: int | None
    disk_bytes: int


@dataclass(frozen=True)
class Price:
    """The cost of a study in which a contender has so many ``replicates`` and the control others.

    ``runs`` counts full training runs: one that stops at a rung counts by its share of the steps.
    ``seconds`` is None without timings.
    """

    replicates: float
    control_replicates: float
    runs: float
    seconds: float | None


def get_phase(name: str, estimate: Estimate) -> PhaseEstimate:
    """Return one phase of an estimate."""
    return next(p for p in estimate.phases if p.name == name)


def estimate(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int], looks: Sequence[int]
) -> Estimate:
    """Estimate a study up to its last look; no method stops before."""
    used = _methods_of(spec, timings)
    rungs = rung_steps(spec.budget)
    probes = _combine_methods(PROBES, {t.method: _probe_seconds(t) for t in used}, 1)  # one by one
    once = _phases_run_once(spec, used, n_items)
    rounds = _estimate_rounds(spec, used, n_items, looks, rungs)
    full = _estimate_rounds(spec, used, n_items, looks, ())
    rest = probes.wall + sum(p.wall for p in once)
    seconds = rest + rounds.wall
    worst = max((t.spread for t in timings), default=0.0)
    error = math.hypot(RELATIVE_ERROR, worst)
    peaks = [t.peak_bytes for t in timings if t.peak_bytes is not None]
    return Estimate(
        seconds,
        seconds * (1 - min(error, 0.9)),
        seconds * (1 + error),
        (probes, rounds, *once),
        rest + full.wall,
        max(peaks) * spec.engine.workers if peaks else None,
        disk_bytes(spec, [t.parameters for t in timings], looks),
    )


def price(
    spec: StudySpec,
    timings: Sequence[Timing] | None,
    n_items: Mapping[str, int],
    looks: Sequence[int],
    replicates: tuple[float, float],
) -> Price:
    """Return the cost of a study in which contenders and control have so many ``replicates``.

    They may be means, between two looks; a method's round then counts by its share.
    """
    contender, control = replicates
    count = contender * len(spec.methods.contenders) + control
    seconds = None
    if timings is not None:
        used, rungs = _methods_of(spec, timings), rung_steps(spec.budget)
        seconds = sum(_probe_seconds(t) for t in used)
        seconds += sum(p.wall for p in _phases_run_once(spec, used, n_items))
        for start, stop in pairwise((0, *looks)):
            by_method = {}
            for t in used:
                wanted = control if t.method == method_name(spec.methods.control) else contender
                share = min(max((wanted - start) / (stop - start), 0.0), 1.0)
                whole = _replicate_seconds(t, spec, n_items, stop - start, rungs)
                by_method[t.method] = share * whole
            seconds += _combine_methods(ROUNDS, by_method, spec.engine.workers).wall
    return Price(contender, control, count * runs_per_replicate(spec.budget), seconds)


def runs_per_replicate(budget: BudgetSpec) -> float:
    """Return the cost of a replicate as a number of full training runs."""
    rungs = rung_steps(budget)
    return sum(
        lanes * (stop - start) / budget.planned_steps
        for lanes, start, stop in _replicate_spans(budget, rungs)
    )


def round_phase(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    methods: Sequence[str],
    replicates: int,
) -> PhaseEstimate:
    """Estimate a round that adds so many ``replicates`` to each of ``methods``."""
    rungs = rung_steps(spec.budget)
    by_method = {
        t.method: _replicate_seconds(t, spec, n_items, replicates, rungs)
        for t in timings
        if t.method in methods
    }
    return _combine_methods(ROUNDS, by_method, spec.engine.workers)


def _methods_of(spec: StudySpec, timings: Sequence[Timing]) -> list[Timing]:
    names = {method_name(n) for n in spec.method_names}
    return [t for t in timings if t.method in names]


def _estimate_rounds(
    spec: StudySpec,
    timings: Sequence[Timing],
    n_items: Mapping[str, int],
    looks: Sequence[int],
    rungs: tuple[int, ...],
) -> PhaseEstimate:
    """Return all rounds as one phase; a round starts when the one before has ended."""
    seconds, wall = dict.fromkeys((t.method for t in timings), 0.0), 0.0
    for start, stop in pairwise((0, *looks)):
        added = {
            t.method: _replicate_seconds(t, spec, n_items, stop - start, rungs) for t in timings
        }
        wall += _combine_methods(ROUNDS, added, spec.engine.workers).wall
        seconds = {method: seconds[method] + s for method, s in added.items()}
    return PhaseEstimate(ROUNDS, seconds, wall)


def _combine_methods(name: str, seconds: Mapping[str, float], workers: int) -> PhaseEstimate:
    wall = max(sum(seconds.values()) / workers, max(seconds.values(), default=0.0))
    return PhaseEstimate(name, seconds, wall)


def _probe_seconds(t: Timing) -> float:
    return PROBE_BUILDS * t.load + PROBE_STEPS * _seconds_at(t.step, 1)


def _phases_run_once(
    spec: StudySpec, timings: Sequence[Timing], n_items: Mapping[str, int]
) -> list[PhaseEstimate]:
    """Return what a study does once: the base model's scores, tuning and check of the head."""
    task = task_class(spec.task.kind)
    control = next((t for t in timings if t.method == method_name(spec.methods.control)), None)
    if control is None:
        return []
    nothing, phases = dict.fromkeys((t.method for t in timings), 0.0), []
    if task.scores_base:
        seconds = control.load + n_items["test"] * control.predict + control.general
        phases.append(PhaseEstimate(BASE, {**nothing, control.method: seconds}, seconds))
    if not task.heads:
        return phases
    is_tuned = spec.task.head_learning_rate in (None, JOINT)
    tuned = _head_tuning_seconds(spec, control, n_items) if is_tuned else 0.0
    checked = dict(nothing)
    contenders = [t for t in timings if t is not control]
    if spec.verdict.check_head and contenders:
        seconds_of = {t.method: _head_check_seconds(spec, t, n_items) for t in timings}
        # the contender that is checked is known after the rounds
        slowest = max(contenders, key=lambda t: seconds_of[t.method]).method
        checked |= {name: seconds_of[name] for name in (control.method, slowest)}
    if tuned or any(checked.values()):
        wall = tuned + _combine_methods(HEAD, checked, spec.engine.workers).wall
        checked[control.method] += tuned
        phases.append(PhaseEstimate(HEAD, checked, wall))
    return phases


def _head_tuning_seconds(spec: StudySpec, t: Timing, n_items: Mapping[str, int]) -> float:
    """Return the seconds of tuning the head: a forward pass over each row that a study uses.

    Steps of the head alone, on these features, take next to nothing.
    """
    taken = spec.budget.planned_steps * spec.budget.batch_size
    rows = min(n_items["train"], taken) + min(n_items["validation"], HEAD_VALIDATION_ROWS)
    return t.load + rows * _seconds_at(t.evaluate, 1)


def _head_check_seconds(spec: StudySpec, t: Timing, n_items: Mapping[str, int]) -> float:
    """Return the seconds of a method's trials at other rates of the head, all in one group."""
    lanes, total = HEAD_RATES_CHECKED, 0.0
    for group in _groups(lanes, spec.engine.max_lanes or t.most_lanes):
        total += _segment_seconds(t, spec, n_items, group, spec.budget.planned_steps)
        total += n_items["validation"] * t.predict * t.lanes_factor(group)
    return total


def _segment_seconds(
    t: Timing, spec: StudySpec, n_items: Mapping[str, int], lanes: int, steps: int
) -> float:
    """Return the seconds to train a group of lanes for so many steps, with validations."""
    evaluations = max(1, round(spec.budget.validations * steps / spec.budget.planned_steps))
    validated = evaluations * n_items["validation"] * _seconds_at(t.evaluate, lanes)
    return t.load + steps * _seconds_at(t.step, lanes) + validated


def _replicate_spans(
    budget: BudgetSpec, rungs: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...]:
    """Return the lanes, first and last step of each segment of a replicate.

    The segment of a setting beyond the grid's edge is the last one.
    """
    spans, start, lanes = [], 0, budget.settings
    stops = (*rungs, budget.planned_steps)
    for number, stop in enumerate(stops):
        spans.append((lanes, start, stop))
        lanes, start = min(lanes, budget.keep[min(number, len(budget.keep) - 1)]), stop
    extensions = min(budget.extend, EXTENSIONS) if budget.settings >= MIN_RATES else 0
    return (*spans, *[(1, 0, stops[0])] * extensions)


def _replicate_seconds(
    t: Timing,
    spec: StudySpec,
    n_items: Mapping[str, int],
    replicates: int,
    rungs: tuple[int, ...],
) -> float:
    """Return the seconds of ``replicates`` of a method that are trained together.

    All their settings share steps up to the rung, the best of each go on together, and the chosen
    ones are scored on test, in lanes like the steps.
    """
    budget, most_lanes = spec.budget, spec.engine.max_lanes or t.most_lanes
    total, by_metric = 0.0, budget.select_on == "metric"
    for lanes, start, stop in _replicate_spans(budget, rungs):
        ends = stop == budget.planned_steps
        predicted = by_metric or (ends and task_class(spec.task.kind).scores_validation)
        for group in _groups(lanes * replicates, most_lanes):
            total += _segment_seconds(t, spec, n_items, group, stop - start)
            if predicted:
                total += n_items["validation"] * t.predict * t.lanes_factor(group)
    for group in _groups(replicates, most_lanes):
        total += t.load + (n_items["test"] * t.predict + t.general) * t.lanes_factor(group)
    return total


def _groups(lanes: int, most: int | None) -> list[int]:
    """Return the sizes of the groups in which lanes are trained."""
    size = most or MOST_LANES
    return [min(size, lanes - first) for first in range(0, lanes, size)]


def _seconds_at(by_lanes: Mapping[int, float], lanes: int) -> float:
    """Interpolate seconds linearly between the smallest and the largest timed number of lanes."""
    (few, low), (many, high) = min(by_lanes.items()), max(by_lanes.items())
    if few == many:
        return low * lanes / few
    return max(low * 0.5, low + (high - low) * (lanes - few) / (many - few))


def replicates_at_once(parameters: int, settings: int) -> int:
    """Return how many replicates of a method may have checkpoints at a rung at the same time.

    The checkpoint of each setting holds fp32 weights and two moments of AdamW.
    """
    return max(1, CHECKPOINT_BYTES // max(1, 12 * parameters * settings))


def disk_bytes(spec: StudySpec, parameters: Iterable[int], looks: Sequence[int]) -> int:
    """Return the most bytes that a study's trials take on disk, from trainable parameters.

    Each replicate keeps one fp32 adapter. While a round's settings race, each has a checkpoint; a
    single setting has none.
    """
    budget, total = spec.budget, 0
    largest = max(stop - start for start, stop in pairwise((0, *looks)))
    for n in parameters:
        racing = min(largest, replicates_at_once(n, budget.settings)) * budget.settings
        total += 4 * n * looks[-1] + (12 * n * racing if budget.settings > 1 else 0)
    return total
