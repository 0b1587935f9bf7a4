"""How long the rest of a phase takes."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bakeoff.core.results import Cost
from bakeoff.study.storage.database import TrialSummary

PHASES = ("search", "final")


def estimate_phase_seconds(
    phase: PhaseProgress | None,
    works: Sequence[RunningJob],
    briefs: Sequence[TrialSummary],
    costs: Mapping[str, Cost],
    workers: int,
) -> float | None:
    """Return the seconds that are left of the phase at hand, None where nothing tells them.

    Trials of a method take what its trials have taken for a step so far, building and evaluating
    included; a method none of whose trials has ended, what the others took in proportion to its
    cost probe. Other phases go on as they have begun.
    """
    kinds = {w.what for w in works}
    stops = [w.stop for w in works if w.stop is not None]
    (kind,) = kinds if len(kinds) == 1 else ("",)
    if kind not in PHASES or not stops:
        return _even_pace(phase)
    mine = [b for b in briefs if b.trial.phase == kind]
    todo = {b.trial.id: b for b in mine if not b.ended and steps_done(b) < max(stops)}
    pace = _Pace.of(mine, costs)
    seconds = {i: pace.seconds(b, max(stops) - steps_done(b)) for i, b in todo.items()}
    if any(s is None for s in seconds.values()):
        return None
    left = sum(s or 0.0 for s in seconds.values())
    longest = 0.0
    for work in works:
        own = sum(seconds.get(i) or 0.0 for i in work.trials)
        left -= min(work.seconds, own)
        longest = max(longest, own - work.seconds)
    return max(left / max(1, workers), longest, 0.0)


class _Pace(NamedTuple):
    """Seconds a step: of methods whose trials have ended, and over that of their cost probe."""

    own: dict[str, float]
    share: float | None
    costs: Mapping[str, Cost]

    @classmethod
    def of(cls, briefs: Sequence[TrialSummary], costs: Mapping[str, Cost]) -> _Pace:
        seconds: defaultdict[str, float] = defaultdict(float)
        steps: defaultdict[str, int] = defaultdict(int)
        for b in briefs:
            if b.result is not None and b.result.seconds > 0 and steps_done(b) > 0:
                seconds[b.trial.method.name] += b.result.seconds
                steps[b.trial.method.name] += steps_done(b)
        own = {m: seconds[m] / steps[m] for m in steps}
        both = [m for m in own if m in costs and costs[m].step_milliseconds]
        probed = sum((costs[m].step_milliseconds or 0.0) * steps[m] / 1000 for m in both)
        took = sum(seconds[m] for m in both)
        return cls(own, took / probed if probed > 0 else None, costs)

    def seconds(self, brief: TrialSummary, steps: int) -> float | None:
        """Return the seconds of so many steps of a trial, None where nothing tells them."""
        method = brief.trial.method.name
        if method in self.own:
            return self.own[method] * steps
        cost = self.costs.get(method)
        if self.share is None or cost is None or not cost.step_milliseconds:
            return None
        return self.share * cost.step_milliseconds * steps / 1000


def steps_done(brief: TrialSummary) -> int:
    """Return the step that a trial has reached."""
    if brief.result is None:
        return 0
    return brief.result.step or (brief.trial.conditions.steps if brief.ended else 0)


def _even_pace(phase: PhaseProgress | None) -> float | None:
    """Return what is left of a phase whose pieces are alike."""
    if phase is None or phase.done <= phase.before:
        return None
    return phase.seconds / (phase.done - phase.before) * (phase.total - phase.done)


@dataclass(frozen=True)
class PhaseProgress:
    """The phase at hand: pieces done of all, and the seconds since it began."""

    title: str
    done: int
    total: int
    before: int
    """Pieces that were there when it began."""
    seconds: float


def seconds_since(text: str) -> float:
    """Return the seconds since a time; another machine's clock may be ahead of ours."""
    try:
        then = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return max(0.0, (datetime.datetime.now(datetime.UTC) - then).total_seconds())


@dataclass(frozen=True)
class RunningJob:
    """Work in flight: a group of ``lanes`` trials between two steps, or a probe."""

    what: str
    method: str
    title: str
    lanes: int
    start: int | None
    stop: int | None
    trials: tuple[str, ...]
    seconds: float
    """Since it began."""
