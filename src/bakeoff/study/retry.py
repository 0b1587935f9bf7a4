"""Retry failed work (`bakeoff run --retry`): delete its results and keep a record of them.

A trial without a result is trained by the next plain run. Deletion and record are one transaction,
so an interruption loses neither.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bakeoff.analysis.rounds.look import Look
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
from bakeoff.study.storage.database.schema import PLANNED

KEY = "retried"
"""Database value: the retried work, oldest first."""
BASE_SCORES = "base_scores"
NOTHING_FAILED = "--retry: nothing has failed, so there is nothing to retry"
KEPT = (
    "--retry does not retry {count}: the test scores of their replicates, or the verdicts on their "
    "methods, are known by now. `--fork NEW` starts a new study that includes them."
)


class FailedWork(NamedTuple):
    """The work to retry, and ``kept``: failed trials that may not be retried any more."""

    trials: tuple[FinishedTrial, ...]
    others: tuple[FinishedTrial, ...]
    """The other trials of the same replicates: their races are run again."""
    costs: tuple[Cost, ...]
    base: str | None
    kept: tuple[Trial, ...]


def reset_failed(study: Study, store: Writer, progress: Progress) -> None:
    """Delete the results of failed work, so that this run repeats it; report what is retried.

    A replicate with a failed trial runs again as a whole: another setting may win its race. If a
    look has been taken without it, the retry counts as one more test-set evaluation. The failures
    are recorded under ``KEY``.
    """
    with Reader(study.folder / study_folder.DATABASE) as reader, reader.snapshot():
        values, costs, trials = reader.values(), reader.costs(), reader.trials()
        looks = [Look.from_json(value) for value in reader.looks(PLANNED)]
    failed = _find_failures(study, values, costs.values(), trials, looks)
    records = list(_retry_records(failed))
    if failed.kept:
        count = plural(len(failed.kept), "failed trial")
        progress.say(KEPT.format(count=count))
    if not records:
        if not failed.kept:
            progress.say(NOTHING_FAILED)
        return
    log = {KEY: [*values.get(KEY, ()), *records]}
    if evaluation := _evaluation(failed, looks, study.spec.seed):
        log["looks"] = [*values.get("looks", ()), evaluation]
    again = (*failed.trials, *failed.others)
    store.delete(
        results=[trial.id for trial, _ in again],
        costs=[cost.method for cost in failed.costs],
        values=[] if failed.base is None else [BASE_SCORES],
        log=log,
    )
    for trial, _ in again:
        study_folder.delete_checkpoints(study.folder, trial.id, before=None)
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
    looks: Sequence[Look],
) -> FailedWork:
    """Return the failed work of the methods that are still in the study.

    A replicate that was scored on test is not run again, nor are those of a method with a verdict:
    another setting might be chosen by someone who has seen the results.
    """
    names = {entry.name for entry in study.entries}
    ended = [(t, r) for t, r in trials if t.method.name in names and r is not None]
    failed = [(t, r) for t, r in ended if r.status in trial_dir.RETRYABLE]
    scored = {(t.method.name, t.seed) for t, r in ended if "test" in r.splits}
    settled = {m for look in looks for m, c in look.contenders.items() if c.verdict is not None}
    retried = [
        (t, r)
        for t, r in failed
        if (t.method.name, t.seed) not in scored and t.method.name not in settled
    ]
    replicates = {(t.method.name, t.seed) for t, _ in retried}
    ids = {t.id for t, _ in retried}
    return FailedWork(
        trials=tuple(retried),
        others=tuple(
            (t, r) for t, r in ended if (t.method.name, t.seed) in replicates and t.id not in ids
        ),
        costs=tuple(c for c in costs if c.method in names and c.status in trial_dir.RETRYABLE),
        base=(values.get(BASE_SCORES) or {}).get("error"),
        kept=tuple(t for t, _ in failed if t.id not in ids),
    )


def _evaluation(
    failed: FailedWork, looks: Sequence[Look], study_seed: int
) -> dict[str, Any] | None:
    """Return the entry of a further test-set evaluation; None if no look has missed a trial."""
    reached = looks[-1].replicates if looks else -1
    missed = [t for t, _ in failed.trials if t.seed - study_seed <= reached]
    if not missed:
        return None
    names = ", ".join(dict.fromkeys(f"{t.method.title} seed {t.seed}" for t in missed))
    return {"at": now_utc(), "changes": [f"retried: {names}"]}


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
    for trial, result in failed.trials:
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
