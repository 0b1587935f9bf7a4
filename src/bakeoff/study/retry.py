"""What failed, tried again: which trials may be, what is forgotten for it, and what is kept.

Called by ``api`` (`bakeoff run --retry`) before anything is trained. A result that is forgotten
leaves its trial planned, so whatever comes then, the plain command trains it: that it was forgotten
and why it had failed are written in one transaction.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bakeoff.core import trial_dir
from bakeoff.core.clock import now_utc
from bakeoff.core.results import Cost, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import TRIALS
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, Writer

KEY = "retried"
"""The study's value that lists what was tried again, oldest first."""
BASE_SCORES = "base_scores"
NOTHING_FAILED = "--retry: nothing has failed, so there is nothing to try again"
SEARCH_TRIALS_KEPT = (
    "--retry leaves {count} of the search as they are: settings were chosen without them, and the "
    "test set has been read since. `--fork NEW` begins the study anew, with them."
)

FinishedTrial = tuple[Trial, TrialResult]


class FailedWork(NamedTuple):
    """What is to be tried again, and what is left: ``search`` trials once test was read."""

    trials: tuple[FinishedTrial, ...]
    withdrawn: tuple[tuple[Trial, TrialResult | None], ...]
    """Final trials of methods whose settings are chosen anew, none of them scored."""
    costs: tuple[Cost, ...]
    base: str | None
    left: tuple[Trial, ...]


def reset_failed(study: Study, store: Writer, progress: Progress) -> None:
    """Forget what failed, so that it is tried again; say what, and what is left and why.

    A search trial races again from its first step, the decisions on others stay. It may change
    which setting its method's final trials have: those are planned anew. What any of them had
    given before is kept under ``KEY``.
    """
    with Reader(study.folder / study_folder.DATABASE) as reader, reader.snapshot():
        values, costs, trials = reader.values(), reader.costs(), reader.trials()
        test_read = reader.has_test_scores()
    found = _find_failures(study, values, costs.values(), trials, test_read)
    noted = list(_retry_records(found))
    if found.left:
        count = f"{len(found.left)} failed trial{'s' if len(found.left) > 1 else ''}"
        progress.say(SEARCH_TRIALS_KEPT.format(count=count))
    if not noted:
        if not found.left:
            progress.say(NOTHING_FAILED)
        return
    plans = [trial.id for trial, _ in found.withdrawn]
    results = [trial.id for trial, _ in found.trials if trial.id not in plans]
    store.delete(
        results=results,
        plans=plans,
        costs=[cost.method for cost in found.costs],
        values=[] if found.base is None else [BASE_SCORES],
        noted={KEY: [*values.get(KEY, ()), *noted]},
    )
    for trial, result in (*found.trials, *found.withdrawn):
        study_folder.delete_checkpoints(study.folder, trial.id, but=None)
        if trial.id in plans and (result is None or result.status in trial_dir.RETRYABLE):
            shutil.rmtree(study.folder / TRIALS / trial.id, ignore_errors=True)
    for note in noted:
        progress.say(describe_retry(note))


def describe_retry(note: dict[str, Any]) -> str:
    """Return one entry under ``KEY`` as a line: what is tried again, and how it had ended."""
    what = {"probe": "cost probe of {method}", "base": "scores of the untouched base"}.get(
        note["phase"], "{method} {phase} trial {trial_id}, seed {seed}"
    )
    return f"tried again: {what.format(**note)}; before: {note['status']}: {note['reason']}"


def _find_failures(
    study: Study, values: dict[str, Any], costs: Iterable[Cost],
    trials: Iterable[tuple[Trial, TrialResult | None]], test_read: bool,
) -> FailedWork:  # fmt: skip
    """Sort out what failed among the methods that the study still has."""
    names = {entry.name for entry in study.entries}
    own = [(t, r) for t, r in trials if t.method.name in names]
    failed = [(t, r) for t, r in own if r is not None and r.status in trial_dir.RETRYABLE]
    left = [t for t, _ in failed if test_read and t.phase == "search"]
    again = [(t, r) for t, r in failed if not test_read or t.phase == "final"]
    anew = {t.method.name for t, _ in again if t.phase == "search"}
    return FailedWork(
        trials=tuple(again),
        withdrawn=tuple((t, r) for t, r in own if t.phase == "final" and t.method.name in anew),
        costs=tuple(c for c in costs if c.method in names and c.status in trial_dir.RETRYABLE),
        base=(values.get(BASE_SCORES) or {}).get("error"),
        left=tuple(left),
    )


def _retry_records(found: FailedWork) -> Iterator[dict[str, Any]]:
    """Yield what is kept of each thing that is forgotten, in the form of ``report.json``."""
    now = now_utc()
    blank: dict[str, Any] = {
        "at": now,
        "method": None,
        "trial_id": None,
        "seed": None,
        "setting": {},
    }
    for cost in found.costs:
        row = {"phase": "probe", "status": cost.status.value, "reason": cost.reason}
        yield {**blank, "method": cost.method, **row}
    ended = [*found.trials, *((t, r) for t, r in found.withdrawn if r is not None)]
    for trial, result in {trial.id: (trial, result) for trial, result in ended}.values():
        yield {
            **blank,
            "method": trial.method.name,
            "trial_id": trial.id,
            "phase": trial.phase,
            "seed": trial.seed,
            "setting": trial.setting,
            "status": result.status.value,
            "reason": result.reason,
        }
    if found.base is not None:
        yield {**blank, "phase": "base", "status": "failed", "reason": found.base}
