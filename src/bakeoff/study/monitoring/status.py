"""A glance at a study while it runs, or after: what goes on, what is left, who leads so far.

Stands beside ``phases`` in the study half and reads what they write: the database without its
items, ``now.json``, the last line of the log. It writes nothing, and waits for no writer. Drawn by
``bakeoff run`` and ``bakeoff status``. What stands here is a standing, no verdict: no interval, no
correction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from bakeoff.core.errors import UsageError
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.wall_time import wall_times
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

RUNNING, DONE, STOPPED = "running", "done", "stopped"


@dataclass(frozen=True)
class MethodStatus:
    """Where a method stands so far.

    ``validation`` is the best value that a search trial reached where the method's trials have got
    furthest, at ``step``: a loss in nats, or the metric where settings are chosen on that. ``test``
    is the mean of its final trials over ``n_seeds``, in the metric's unit. Absence is None.
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


@dataclass(frozen=True)
class StudyStatus:
    """All of it. Seconds left are None where nothing tells them."""

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
    """Of one worker, over all trials that have ended or stand at a rung."""
    workers: int
    phase_seconds_left: float | None
    study_seconds_left: float | None
    last: dict[str, Any] | None


class StoredStudy(NamedTuple):
    values: dict[str, Any]
    briefs: tuple[TrialSummary, ...]
    costs: dict[str, Cost]


def read_status(folder: Path, mine: bool = False) -> StudyStatus:
    """Return what a study in ``folder`` is at; ``mine``: this process is the one that runs it.

    Raises:
        UsageError: ``no-study``.
        BakeoffError: what its database cannot be read for.
    """
    holder = lock.read_holder(folder) if mine else _current_holder(folder)
    noted = read_current_work(folder, holder.pid) if holder else {}
    found = read_stored(folder, running=holder is not None)
    values, briefs, costs = found
    known = values.get("about") or values.get("imported") or {}
    spec = values.get("spec") or {}
    select_on = (spec.get("budget") or {}).get("select_on", "loss")
    metric = known.get("metric")
    methods = list(known.get("methods") or dict.fromkeys(b.trial.method.name for b in briefs))
    briefs = tuple(b for b in briefs if b.trial.method.name in methods)
    works, phase = (
        tuple(map(_running_job, noted.get("works", ()))),
        _phase_progress(noted.get("phase")),
    )
    workers = (spec.get("engine") or {}).get("workers", 1)
    left = estimate_phase_seconds(phase, works, briefs, costs, workers) if holder else None
    standings = tuple(_method_status(m, methods, known, found, select_on) for m in methods)
    return StudyStatus(
        folder=str(folder),
        name=spec.get("name") or known.get("name") or folder.resolve().name,
        state=RUNNING if holder else DONE if _is_complete(methods, briefs, costs) else STOPPED,
        holder=None if holder is None else {**holder._asdict(), "alive": holder.alive},
        phase=phase,
        works=works,
        done=sum(b.ended for b in briefs),
        planned=len(briefs),
        costs=len(costs),
        rows=_count_trials(methods, briefs),
        methods=standings,
        metric=metric,
        select_on=select_on,
        tokens_per_second=_tokens_per_second(b.result for b in briefs),
        workers=workers,
        phase_seconds_left=left,
        study_seconds_left=_study_seconds_left(values, works, left, holder) if holder else None,
        last=read_last_event(folder),
    )


def _current_holder(folder: Path) -> lock.LockHolder | None:
    """Return who runs the study; the lock is asked only where there is one, to make no file."""
    if not (folder / lock.LOCK).is_file():
        return None
    found = lock.current_holder(folder)
    # another glance may have held it for its own moment's look
    return lock.current_holder(folder) if found is not None and found.pid == 0 else found


def read_stored(folder: Path, running: bool) -> StoredStudy:
    try:
        with Reader(study_folder.database_path(folder)) as reader, reader.snapshot():
            return StoredStudy(reader.values(), reader.summaries(), reader.costs())
    except UsageError:
        if running:
            return StoredStudy({}, (), {})  # it has begun, and written nothing yet
        raise


def _count_trials(methods: Sequence[str], briefs: Sequence[TrialSummary]) -> list[dict[str, Any]]:
    """Return the planned trials by phase and method, counted by their status."""
    rows = []
    for phase in PHASES:
        for method in methods:
            mine = [b for b in briefs if (b.trial.phase, b.trial.method.name) == (phase, method)]
            if mine:
                counts = Counter(
                    b.result.status.value if b.ended and b.result else "missing" for b in mine
                )
                rows.append({"phase": phase, "method": method, "trials": len(mine), **counts})
    return rows


def _method_status(
    method: str,
    methods: Sequence[str],
    known: Mapping[str, Any],
    found: StoredStudy,
    select_on: str,
) -> MethodStatus:
    mine = [b for b in found.briefs if b.trial.method.name == method]
    better = (known.get("metric") or {}).get("better", "higher")
    best, step = _best_value([b for b in mine if b.trial.phase == "search"], select_on, better)
    tests = [
        b.means["test"]
        for b in mine
        if b.trial.phase == "final" and "test" in b.means and math.isfinite(b.means["test"])
    ]
    cost = found.costs.get(method)
    unable = cost is not None and cost.status is Status.INCOMPATIBLE
    titles = known.get("titles") or {}
    bad = (Status.FAILED, Status.DIVERGED, Status.OUT_OF_MEMORY)
    return MethodStatus(
        method=method,
        title=titles.get(method) or (mine[0].trial.method.title if mine else method),
        control=method == methods[0],
        done=sum(b.ended for b in mine),
        planned=len(mine),
        validation=best,
        step=step,
        test=fmean(tests) if tests else None,
        n_seeds=len(tests),
        tokens_per_second=_tokens_per_second(b.result for b in mine),
        failed=sum(b.result is not None and b.result.status in bad for b in mine),
        incompatible=(cost.reason or "") if cost is not None and unable else None,
    )


def _best_value(
    search: Sequence[TrialSummary], select_on: str, better: str
) -> tuple[float | None, int | None]:
    """Return the best value where the method's search has got furthest, and the step there.

    Losses at different steps do not compare: a trial that went on has had more of them.
    """
    at: dict[int, list[float]] = {}
    for brief in search:
        value = _validation_value(brief, select_on)
        if value is not None and brief.result is not None:
            step = brief.result.step or brief.trial.conditions.steps
            at.setdefault(step, []).append(value)
    if not at:
        return None, None
    step = max(at)
    pick = max if select_on == "metric" and better == "higher" else min
    return pick(at[step]), step


def _validation_value(brief: TrialSummary, select_on: str) -> float | None:
    result = brief.result
    if result is None or result.status not in (Status.DONE, Status.STOPPED):
        return None
    if select_on == "metric":
        found = brief.means.get("validation")
    else:
        found = result.curve[-1].validation_loss if result.curve else None
        if found is None and "validation" in result.splits:
            found = result.splits["validation"].mean_loss
    return found if found is not None and math.isfinite(found) else None


def _tokens_per_second(results: Iterable[TrialResult | None]) -> float | None:
    """Return the tokens that were trained on in a second of training, None until some were."""
    found = [r for r in results if r is not None and r.train_tokens and r.train_seconds]
    seconds = sum(r.train_seconds or 0.0 for r in found)
    return sum(r.train_tokens or 0 for r in found) / seconds if seconds > 0 else None


def _is_complete(
    methods: Sequence[str], briefs: Sequence[TrialSummary], costs: Mapping[str, Cost]
) -> bool:
    """Tell whether nothing is left to train: every method that could go on has its final trials."""
    if not briefs or not all(b.ended for b in briefs):
        return False
    for method in methods:
        cost = costs.get(method)
        if cost is not None and cost.status is Status.INCOMPATIBLE:
            continue
        mine = [b for b in briefs if b.trial.method.name == method]
        if any(b.trial.phase == "final" for b in mine):
            continue
        if not mine or any(b.result and b.result.status is Status.DONE for b in mine):
            return False
    return True


def _study_seconds_left(
    values: Mapping[str, Any],
    works: Sequence[RunningJob],
    left: float | None,
    holder: lock.LockHolder | None,
) -> float | None:
    """Return what is left of the study: of its hours, else of its last phase.

    What the final trials take is not known while the search runs: nothing has been scored on test.
    """
    if "hours" in values:
        from bakeoff.study.planning import (
            time_budget,  # and scipy with it: a glance at most studies goes without
        )

        before = sum(wall_times(values))
        spent = before + (seconds_since(holder.since) if holder else 0.0)
        planned = time_budget.TARGET * float(values["hours"]["fit"]["hours"]) * 3600
        return max(planned - spent, left or 0.0)
    return left if any(w.what == "final" for w in works) else None


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
        value["title"],
        value["done"],
        value["total"],
        value["before"],
        seconds_since(value["since"]),
    )
