"""Estimate the remaining time of a study's phase; `bakeoff status` and the live view share it."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bakeoff.core.results import Cost
from bakeoff.core.trial import FINAL, REPLICATE
from bakeoff.study.storage.database import TrialSummary

PHASES = ("search", FINAL, REPLICATE)


@dataclass(frozen=True)
class PhaseProgress:
    """The current phase: finished pieces, all pieces, and the seconds since it started."""

    title: str
    done: int
    total: int
    before: int
    """Pieces that were finished when the phase started."""
    seconds: float


@dataclass(frozen=True)
class RunningJob:
    """A job in progress: a group of ``lanes`` trials between two steps, or a probe."""

    what: str
    method: str
    title: str
    lanes: int
    start: int | None
    stop: int | None
    trials: tuple[str, ...]
    seconds: float
    """Since it started."""


def estimate_phase_seconds(
    phase: PhaseProgress | None,
    jobs: Sequence[RunningJob],
    summaries: Sequence[TrialSummary],
    costs: Mapping[str, Cost],
    workers: int,
) -> float | None:
    """Return the remaining seconds of the current phase, or None if they cannot be estimated.

    In the search and the final phase, a trial is expected to need as many seconds a step as its
    method's trials have needed so far, with set-up and evaluation. For a method without a finished
    trial, the other methods' seconds are scaled by the cost probes. Any other phase is expected to
    continue at the average pace of its finished pieces.
    """
    kinds = {job.what for job in jobs}
    stops = [job.stop for job in jobs if job.stop is not None]
    (kind,) = kinds if len(kinds) == 1 else ("",)
    if kind not in PHASES or not stops:
        return _average_pace_seconds(phase)
    in_phase = [s for s in summaries if s.trial.phase == kind]
    # The jobs of a phase end at the same step. Trials that have reached it, at a rung, are done.
    stop = max(stops)
    todo = {s.trial.id: s for s in in_phase if not s.ended and steps_done(s) < stop}
    pace = _Pace.of(in_phase, costs)
    expected = {i: pace.seconds(s, stop - steps_done(s)) for i, s in todo.items()}
    if any(seconds is None for seconds in expected.values()):
        return None
    total = sum(seconds or 0.0 for seconds in expected.values())
    longest = 0.0
    for job in jobs:
        job_seconds = sum(expected.get(i) or 0.0 for i in job.trials)
        total -= min(job.seconds, job_seconds)  # a running job has used part of its time
        longest = max(longest, job_seconds - job.seconds)
    return max(total / max(1, workers), longest, 0.0)


class _Pace(NamedTuple):
    """Seconds a step of methods with finished trials, and their ratio to the cost probes."""

    by_method: dict[str, float]
    ratio: float | None
    costs: Mapping[str, Cost]

    @classmethod
    def of(cls, summaries: Sequence[TrialSummary], costs: Mapping[str, Cost]) -> _Pace:
        seconds: defaultdict[str, float] = defaultdict(float)
        steps: defaultdict[str, int] = defaultdict(int)
        for s in summaries:
            if s.result is not None and s.result.seconds > 0 and steps_done(s) > 0:
                seconds[s.trial.method.name] += s.result.seconds
                steps[s.trial.method.name] += steps_done(s)
        by_method = {m: seconds[m] / steps[m] for m in steps}
        probed = [m for m in by_method if m in costs and costs[m].step_milliseconds]
        expected = sum((costs[m].step_milliseconds or 0.0) * steps[m] / 1000 for m in probed)
        measured = sum(seconds[m] for m in probed)
        return cls(by_method, measured / expected if expected > 0 else None, costs)

    def seconds(self, summary: TrialSummary, steps: int) -> float | None:
        """Return the seconds of ``steps`` steps of a trial, or None if they are unknown."""
        method = summary.trial.method.name
        if method in self.by_method:
            return self.by_method[method] * steps
        cost = self.costs.get(method)
        if self.ratio is None or cost is None or not cost.step_milliseconds:
            return None
        return self.ratio * cost.step_milliseconds * steps / 1000


def steps_done(summary: TrialSummary) -> int:
    """Return the step that a trial has reached."""
    if summary.result is None:
        return 0
    return summary.result.step or (summary.trial.conditions.steps if summary.ended else 0)


def _average_pace_seconds(phase: PhaseProgress | None) -> float | None:
    if phase is None or phase.done <= phase.before:
        return None
    return phase.seconds / (phase.done - phase.before) * (phase.total - phase.done)


def seconds_since(text: str) -> float:
    """Return the seconds since an ISO 8601 time; at least 0, as another clock may be ahead."""
    try:
        then = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return max(0.0, (datetime.datetime.now(datetime.UTC) - then).total_seconds())
