"""The status of a study, while it runs or after: running jobs, time left, methods so far.

It is read from the database (without items), ``now.json`` and the last line of the log; nothing is
written, and no writer is waited for. The methods' numbers are provisional: they have no intervals
and no corrections.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from bakeoff.core.clock import wall_times
from bakeoff.core.errors import UsageError
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import FINAL, REPLICATE
from bakeoff.study.monitoring.progress import read_current_work, read_last_event
from bakeoff.study.monitoring.progress_estimate import (
    PHASES,
    PhaseProgress,
    RunningJob,
    estimate_phase_seconds,
    seconds_since,
)
from bakeoff.study.storage import lock
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, TrialSummary
from bakeoff.study.storage.database.schema import PLANNED

RUNNING, DONE, STOPPED = "running", "done", "stopped"
FAILURES = (Status.FAILED, Status.DIVERGED, Status.OUT_OF_MEMORY)


@dataclass(frozen=True)
class MethodStatus:
    """A method's progress and provisional results; unknown values are None.

    ``validation`` is the best value among the search trials that have reached the furthest
    ``step``: a loss in nats, or the metric if settings are selected on it. ``test`` is the mean of
    the trials scored on test over ``n_seeds``, in the metric's unit. ``verdict`` is that of the
    look that closed a contender; None for the control and for contenders that are open.
    """

    method: str
    title: str
    control: bool
    done: int
    planned: int
    validation: float | None
    step: int | None
    test: float | None
    n_seeds: int
    tokens_per_second: float | None
    failed: int
    incompatible: str | None
    verdict: str | None = None
    lanes_ratio: float | None = None
    """Duration of a step of ``lanes_timed`` lanes, in steps of a single trial."""
    lanes_timed: int | None = None


@dataclass(frozen=True)
class RoundsStatus:
    """The rounds of a study: replicates at the planned looks, looks taken, open contenders.

    ``ended``: no further round follows.
    """

    planned: tuple[int, ...]
    looks: int
    open: tuple[str, ...]
    ended: bool


@dataclass(frozen=True)
class StudyStatus:
    """The status of a study. Seconds left are None if they cannot be estimated."""

    folder: str
    name: str
    state: str
    holder: dict[str, Any] | None
    phase: PhaseProgress | None
    works: tuple[RunningJob, ...]
    done: int
    planned: int
    costs: int
    rows: list[dict[str, Any]]
    methods: tuple[MethodStatus, ...]
    metric: dict[str, Any] | None
    select_on: str
    tokens_per_second: float | None
    """Of one worker, over all trials that have ended or reached a rung."""
    workers: int
    phase_seconds_left: float | None
    study_seconds_left: float | None
    last: dict[str, Any] | None
    rounds: RoundsStatus | None = None


@dataclass(frozen=True)
class StoredStudy:
    """The contents of a study's database without items."""

    values: dict[str, Any]
    summaries: tuple[TrialSummary, ...]
    costs: dict[str, Cost]
    looks: tuple[dict[str, Any], ...] = ()

    @property
    def rounds(self) -> RoundsStatus | None:
        """The state of the rounds; None before the first one, and for studies without rounds."""
        schedule = self.values.get("rounds")
        if not schedule:
            return None
        planned = tuple(schedule["looks"])
        numbers = self.looks[-1]["contenders"] if self.looks else {}
        still_open = tuple(m for m in numbers if numbers[m]["verdict"] is None)
        if not self.looks:
            still_open = tuple(schedule["contenders"])
        last = bool(self.looks) and (not still_open or len(self.looks) >= len(planned))
        return RoundsStatus(planned, len(self.looks), still_open, last or "stopped" in schedule)

    def verdict(self, method: str) -> str | None:
        """Return the verdict of the look that closed a contender; None while it is open."""
        given = (look["contenders"].get(method, {}).get("verdict") for look in self.looks)
        return next((verdict for verdict in given if verdict is not None), None)

    @property
    def about(self) -> Mapping[str, Any]:
        """The description of the study; empty before it has been written."""
        return self.values.get("about") or self.values.get("imported") or {}

    @property
    def spec(self) -> Mapping[str, Any]:
        """The study's configuration; empty for an imported study."""
        return self.values.get("spec") or {}

    @cached_property
    def methods(self) -> list[str]:
        """The study's methods, control first."""
        planned = dict.fromkeys(s.trial.method.name for s in self.summaries)
        return list(self.about.get("methods") or planned)

    @cached_property
    def trials(self) -> tuple[TrialSummary, ...]:
        """The planned trials of the study's methods; a removed method's trials are left out."""
        methods = set(self.methods)
        return tuple(s for s in self.summaries if s.trial.method.name in methods)

    @property
    def workers(self) -> int:
        """The number of workers that share the study's work."""
        workers: int = (self.spec.get("engine") or {}).get("workers", 1)
        return workers


class CurrentWork(NamedTuple):
    """The phase and the jobs of the process that runs a study."""

    phase: PhaseProgress | None = None
    jobs: tuple[RunningJob, ...] = ()


def read_status(folder: Path, mine: bool = False) -> StudyStatus:
    """Return the status of the study in ``folder``; ``mine``: this process runs it.

    Raises:
        UsageError: ``no-study``.
        BakeoffError: the database cannot be read.
    """
    holder = lock.read_holder(folder) if mine else _current_holder(folder)
    work = read_work(folder, holder)
    stored = read_stored(folder, running=holder is not None)
    about, trials, methods = stored.about, stored.trials, stored.methods
    select_on = (stored.spec.get("budget") or {}).get("select_on", "loss")
    complete = _is_complete(stored)
    left = phase_seconds_left(work, stored)
    return StudyStatus(
        folder=str(folder),
        name=stored.spec.get("name") or about.get("name") or folder.resolve().name,
        state=RUNNING if holder else DONE if complete else STOPPED,
        holder=None if holder is None else {**holder._asdict(), "alive": holder.alive},
        phase=work.phase,
        works=work.jobs,
        done=sum(s.ended for s in trials),
        planned=len(trials),
        costs=len(stored.costs),
        rows=_count_trials(methods, trials),
        methods=tuple(_method_status(m, stored, select_on) for m in methods),
        metric=about.get("metric"),
        select_on=select_on,
        tokens_per_second=_tokens_per_second(s.result for s in trials),
        workers=stored.workers,
        phase_seconds_left=left,
        study_seconds_left=_study_seconds_left(stored.values, work.jobs, left, holder),
        last=read_last_event(folder),
        rounds=stored.rounds,
    )


def phase_seconds_left(work: CurrentWork, stored: StoredStudy) -> float | None:
    """Return the remaining seconds of the current phase, or None if they cannot be estimated."""
    return estimate_phase_seconds(
        work.phase, work.jobs, stored.trials, stored.costs, stored.workers
    )


def read_work(folder: Path, holder: lock.LockHolder | None) -> CurrentWork:
    """Return the current work of ``holder``, which runs the study; empty if it wrote none."""
    value = read_current_work(folder, holder.pid) if holder else {}
    try:
        jobs = tuple(map(_running_job, value.get("works", ())))
        return CurrentWork(_phase_progress(value.get("phase")), jobs)
    except (KeyError, TypeError, AttributeError):  # now.json of another version
        return CurrentWork()


def _current_holder(folder: Path) -> lock.LockHolder | None:
    """Return the process that runs the study; asking the lock would create a missing lock file."""
    if not (folder / lock.LOCK).is_file():
        return None
    holder = lock.current_holder(folder)
    # pid 0: held without a note, perhaps by another status command for a moment; ask once more
    return lock.current_holder(folder) if holder is not None and holder.pid == 0 else holder


def read_stored(folder: Path, running: bool = False) -> StoredStudy:
    """Read a study's database; ``running``: it may not exist yet.

    Raises:
        UsageError: ``no-study``.
        BakeoffError: the database cannot be read.
    """
    try:
        with Reader(study_folder.database_path(folder)) as reader, reader.snapshot():
            looks = tuple(reader.looks(PLANNED))
            return StoredStudy(reader.values(), reader.summaries(), reader.costs(), looks)
    except UsageError:
        if running:
            return StoredStudy({}, (), {})
        raise


def _count_trials(methods: Sequence[str], trials: Sequence[TrialSummary]) -> list[dict[str, Any]]:
    """Return the numbers of planned trials by phase, method and status."""
    rows = []
    for phase in PHASES:
        for method in methods:
            group = [s for s in trials if (s.trial.phase, s.trial.method.name) == (phase, method)]
            if group:
                counts = Counter(
                    s.result.status.value if s.ended and s.result else "missing" for s in group
                )
                rows.append({"phase": phase, "method": method, "trials": len(group), **counts})
    return rows


def _method_status(method: str, stored: StoredStudy, select_on: str) -> MethodStatus:
    trials = [s for s in stored.trials if s.trial.method.name == method]
    better = (stored.about.get("metric") or {}).get("better", "higher")
    search = [s for s in trials if s.trial.phase != FINAL]
    best, step = _best_value(search, select_on, better)
    tests = [s.means["test"] for s in trials if math.isfinite(s.means.get("test", math.nan))]
    cost = stored.costs.get(method)
    incompatible = cost is not None and cost.status is Status.INCOMPATIBLE
    title = (stored.about.get("titles") or {}).get(method)
    return MethodStatus(
        method=method,
        title=title or (trials[0].trial.method.title if trials else method),
        control=method == stored.methods[0],
        done=sum(s.ended for s in trials),
        planned=len(trials),
        validation=best,
        step=step,
        test=fmean(tests) if tests else None,
        n_seeds=len(tests),
        tokens_per_second=_tokens_per_second(s.result for s in trials),
        failed=sum(s.result is not None and s.result.status in FAILURES for s in trials),
        incompatible=(cost.reason or "") if cost is not None and incompatible else None,
        verdict=stored.verdict(method),
        lanes_ratio=None if cost is None else cost.lanes_ratio,
        lanes_timed=None if cost is None else cost.lanes_timed,
    )


def _best_value(
    search: Sequence[TrialSummary], select_on: str, better: str
) -> tuple[float | None, int | None]:
    """Return the best value at the furthest step that a search trial has reached, and that step.

    Losses at different steps do not compare: they fall as training continues.
    """
    by_step: dict[int, list[float]] = {}
    for summary in search:
        value = _validation_value(summary, select_on)
        if value is not None and summary.result is not None:
            step = summary.result.step or summary.trial.conditions.steps
            by_step.setdefault(step, []).append(value)
    if not by_step:
        return None, None
    step = max(by_step)
    best = max if select_on == "metric" and better == "higher" else min
    return best(by_step[step]), step


def _validation_value(summary: TrialSummary, select_on: str) -> float | None:
    result = summary.result
    if result is None or result.status not in (Status.DONE, Status.STOPPED):
        return None
    by_metric = select_on == "metric"
    value = summary.means.get("validation") if by_metric else result.validation_loss
    return value if value is not None and math.isfinite(value) else None


def _tokens_per_second(results: Iterable[TrialResult | None]) -> float | None:
    """Return the trained tokens per second of training, or None without any."""
    trained = [r for r in results if r is not None and r.train_tokens and r.train_seconds]
    seconds = sum(r.train_seconds or 0.0 for r in trained)
    return sum(r.train_tokens or 0 for r in trained) / seconds if seconds > 0 else None


def _is_complete(stored: StoredStudy) -> bool:
    """Return whether nothing is left to train: no round follows, or all final trials are done."""
    methods, trials = stored.methods, stored.trials
    if not trials or not all(s.ended for s in trials):
        return False
    if any(s.trial.phase == REPLICATE for s in trials):
        return stored.rounds is not None and stored.rounds.ended
    for method in methods:
        cost = stored.costs.get(method)
        if cost is not None and cost.status is Status.INCOMPATIBLE:
            continue
        group = [s for s in trials if s.trial.method.name == method]
        if any(s.trial.phase == FINAL for s in group):
            continue
        if not group or any(s.result and s.result.status is Status.DONE for s in group):
            return False
    return True


def _study_seconds_left(
    values: Mapping[str, Any],
    jobs: Sequence[RunningJob],
    phase_left: float | None,
    holder: lock.LockHolder | None,
) -> float | None:
    """Return the remaining seconds of a study: of its time budget, else of its last phase.

    During the search the duration of the final trials is unknown: nothing was scored on test yet.
    How many rounds follow is not known before the looks.
    """
    if holder is None:
        return None
    if "hours" in values:
        from bakeoff.study.planning import time_budget  # imports scipy, which few studies need here

        spent = sum(wall_times(values)) + seconds_since(holder.since)
        planned = time_budget.TARGET * float(values["hours"]["fit"]["hours"]) * 3600
        return max(planned - spent, phase_left or 0.0)
    return phase_left if any(job.what == FINAL for job in jobs) else None


def _running_job(value: Mapping[str, Any]) -> RunningJob:
    trials = tuple(value["trials"])
    return RunningJob(
        value["what"], value["method"], value["title"], max(1, len(trials)),
        value["start"], value["stop"], trials, seconds_since(value["since"]),
    )  # fmt: skip


def _phase_progress(value: Mapping[str, Any] | None) -> PhaseProgress | None:
    if not value:
        return None
    return PhaseProgress(
        value["title"], value["done"], value["total"], value["before"],
        seconds_since(value["since"]),
    )  # fmt: skip
