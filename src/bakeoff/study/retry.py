"""Retry failed work (`bakeoff run --retry`): delete its results and keep a record of them.

A trial without a result is trained by the next plain run. Deletion and record are one transaction,
so an interruption loses neither.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bakeoff.core import trial_dir
from bakeoff.core.clock import now_utc
from bakeoff.core.format import plural
from bakeoff.core.results import Cost, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import TRIALS
from bakeoff.study.failures import FinishedTrial
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, Writer

KEY = "retried"
"""Database value: the retried work, oldest first."""
BASE_SCORES = "base_scores"
NOTHING_FAILED = "--retry: nothing has failed, so there is nothing to retry"
SEARCH_TRIALS_KEPT = (
    "--retry does not retry {count} of the search: settings were chosen without them, and the test "
    "set was evaluated since. `--fork NEW` starts a new study that includes them."
)


class FailedWork(NamedTuple):
    """The work to retry, and ``kept``: failed search trials that may not be retried any more."""

    trials: tuple[FinishedTrial, ...]
    replanned: tuple[tuple[Trial, TrialResult | None], ...]
    """Final trials of methods whose settings will be chosen again; none was scored on test."""
    costs: tuple[Cost, ...]
    base: str | None
    kept: tuple[Trial, ...]


def reset_failed(study: Study, store: Writer, progress: Progress) -> None:
    """Delete the results of failed work, so that this run repeats it; report what is retried.

    A search trial is raced again from its first step; decisions on other trials stay. It may change
    the setting of its method's final trials, so those are planned again. The deleted results are
    recorded under ``KEY``.
    """
    with Reader(study.folder / study_folder.DATABASE) as reader, reader.snapshot():
        values, costs, trials = reader.values(), reader.costs(), reader.trials()
        test_read = reader.has_test_scores()
    failed = _find_failures(study, values, costs.values(), trials, test_read)
    records = list(_retry_records(failed))
    if failed.kept:
        count = plural(len(failed.kept), "failed trial")
        progress.say(SEARCH_TRIALS_KEPT.format(count=count))
    if not records:
        if not failed.kept:
            progress.say(NOTHING_FAILED)
        return
    plans = [trial.id for trial, _ in failed.replanned]
    results = [trial.id for trial, _ in failed.trials if trial.id not in plans]
    store.delete(
        results=results,
        plans=plans,
        costs=[cost.method for cost in failed.costs],
        values=[] if failed.base is None else [BASE_SCORES],
        log={KEY: [*values.get(KEY, ()), *records]},
    )
    for trial, result in (*failed.trials, *failed.replanned):
        study_folder.delete_checkpoints(study.folder, trial.id, but=None)
        if trial.id in plans and (result is None or result.status in trial_dir.RETRYABLE):
            shutil.rmtree(study.folder / TRIALS / trial.id, ignore_errors=True)
    for record in records:
        progress.say(describe_retry(record))


def describe_retry(record: dict[str, Any]) -> str:
    """Return one entry of ``KEY`` as a line: the retried work, and how it had ended."""
    what = {"probe": "cost probe of {method}", "base": "scores of the base model"}.get(
        record["phase"], "{method} {phase} trial {trial_id}, seed {seed}"
    )
    return f"retrying {what.format(**record)}; before: {record['status']}: {record['reason']}"


def _find_failures(
    study: Study,
    values: dict[str, Any],
    costs: Iterable[Cost],
    trials: Iterable[tuple[Trial, TrialResult | None]],
    test_read: bool,
) -> FailedWork:
    """Return the failed work of the methods that are still in the study.

    After a test-set evaluation (``test_read``) search trials are not retried: another setting might
    be chosen by someone who has seen the verdict.
    """
    names = {entry.name for entry in study.entries}
    current = [(t, r) for t, r in trials if t.method.name in names]
    failed = [(t, r) for t, r in current if r is not None and r.status in trial_dir.RETRYABLE]
    retried = [(t, r) for t, r in failed if not test_read or t.phase == "final"]
    searching = {t.method.name for t, _ in retried if t.phase == "search"}
    return FailedWork(
        trials=tuple(retried),
        replanned=tuple(
            (t, r) for t, r in current if t.phase == "final" and t.method.name in searching
        ),
        costs=tuple(c for c in costs if c.method in names and c.status in trial_dir.RETRYABLE),
        base=(values.get(BASE_SCORES) or {}).get("error"),
        kept=tuple(t for t, _ in failed if test_read and t.phase == "search"),
    )


def _retry_records(failed: FailedWork) -> Iterator[dict[str, Any]]:
    """Yield the record of each deleted result, in the form of ``report.json``."""
    blank: dict[str, Any] = {
        "at": now_utc(),
        "method": None,
        "trial_id": None,
        "seed": None,
        "setting": {},
    }
    for cost in failed.costs:
        row = {"phase": "probe", "status": cost.status.value, "reason": cost.reason}
        yield {**blank, "method": cost.method, **row}
    finished = [*failed.trials, *((t, r) for t, r in failed.replanned if r is not None)]
    for trial, result in {trial.id: (trial, result) for trial, result in finished}.values():
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
    if failed.base is not None:
        yield {**blank, "phase": "base", "status": "failed", "reason": failed.base}
