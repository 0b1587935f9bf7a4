"""Verify saved weights: reload one final trial of each method and compare its validation loss.

A worker loads the saved files in plain PEFT on a fresh base model and computes the validation loss.
If it differs from the loss at the end of training, the report warns that the saved weights are not
the trained ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.analysis.per_method.best_weights import best_final_run, weights_problem
from bakeoff.analysis.trial_runs import TrialRun, is_final
from bakeoff.core import jobs
from bakeoff.core.redact import redact
from bakeoff.study.monitoring.progress import Job, with_events
from bakeoff.study.remote import check_disk_full
from bakeoff.study.scheduler import RunContext
from bakeoff.study.setup.study import whole_segment

KEY = "artifacts"
"""Database value: the verification result of each method's saved weights."""
FP32_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 2e-2
"""Largest relative difference of the losses, in fp32 and in 16 bits. Padded batches in plain
transformers and packed lanes add numbers in another order, and in 16 bits they round each product
differently: 3e-4 was measured on SmolLM2-135M, and 9e-3 with PiSSA, whose base is rounded twice."""
MIN_LOSS_SCALE = 0.1
"""Nats. Smaller losses are compared as if they had this size."""
OUT_OF_TIME = "saved weights are not verified: the time budget is used up"


def verify_saved_weights(context: RunContext) -> None:
    """Reload the best final trial of each method; write whether its weights are the trained ones.

    Trials that were verified before are skipped, unless that failed. If a deadline leaves too
    little time, all are skipped with a message.
    """
    study, store, progress = context.study, context.store, context.progress
    with context.read() as reader:
        artifacts, summaries = dict(reader.values(KEY).get(KEY, {})), reader.summaries()
    names = [entry.name for entry in study.entries]
    finals = [TrialRun(s.trial, s.result) for s in summaries if is_final(s.trial, s.result)]
    best = (best_final_run(r for r in finals if r.trial.method.name == name) for name in names)
    runs = [run for run in best if run is not None]
    todo = [run for run in runs if not _is_verified(artifacts.get(run.trial.method.name), run)]
    progress.phase("Reload", len(runs), len(runs) - len(todo))
    deadline = context.deadline
    if todo and deadline is not None and not deadline.allows(sum(map(_expected_seconds, todo))):
        progress.say(OUT_OF_TIME)
        return
    reloads = [
        Job("reload", r.trial.method.name, r.trial.method.title, (r.trial.id,)) for r in todo
    ]
    payloads = [whole_segment(study, [run.trial]).to_json() for run in todo]
    events = with_events(progress, reloads, payloads)
    for outcome in context.executor.map(jobs.RELOAD_WEIGHTS, events):
        check_disk_full(study.folder, outcome)
        run = todo[outcome.index]
        reloaded = outcome.value or {"loss": None, "path": None, "error": outcome.error}
        artifact = _artifact_record(run, reloaded)
        artifacts[run.trial.method.name] = artifact
        store.set(KEY, artifacts)
        progress.advance(run.trial.method.name)
        progress.on_end(reloads[outcome.index])
        if (problem := weights_problem(run.trial.method.title, artifact)) is not None:
            progress.say(problem)
    context.stop.check()


def losses_match(loss: float, reloaded: float, precision: str) -> bool:
    """Return whether two validation losses, in nats, are equal within rounding.

    ``precision`` is the study's.
    """
    tolerance = FP32_TOLERANCE if precision == "fp32" else ROUNDED_TOLERANCE
    return abs(reloaded - loss) <= tolerance * max(abs(loss), MIN_LOSS_SCALE)


def _is_verified(artifact: Mapping[str, Any] | None, run: TrialRun) -> bool:
    if artifact is None or artifact["error"] is not None:
        return False
    return bool(artifact["trial_id"] == run.trial.id)


def _expected_seconds(run: TrialRun) -> float:
    """Return the seconds that the trial took to load and to evaluate."""
    if run.result is None:
        return 0.0
    return (run.result.load_seconds or 0.0) + (run.result.evaluation_seconds or 0.0)


def _artifact_record(run: TrialRun, reloaded: Mapping[str, Any]) -> dict[str, Any]:
    before, after = run.validation_loss, reloaded["loss"]
    precision = run.trial.conditions.precision
    same = None
    if before is not None and after is not None:
        same = losses_match(before, after, precision)
    return {
        "trial_id": run.trial.id,
        "seed": run.trial.seed,
        "path": reloaded["path"],
        "loss": before,
        "reloaded_loss": after,
        "same": same,
        "error": None if reloaded["error"] is None else redact(reloaded["error"]),
    }
