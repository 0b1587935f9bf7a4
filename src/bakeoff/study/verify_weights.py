"""What a study leaves behind: of each method the weights of one final trial, loaded anew.

Called by ``api`` when the final trials have ended. A worker loads the saved files in plain PEFT on
an untouched base and takes the validation loss (``reloading``); here that is held against the loss
that training ended with. Weights that do not give it are nobody's: the report warns of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.analysis.per_method.best_weights import best_final_run, weights_problem
from bakeoff.analysis.trial_runs import TrialRun
from bakeoff.core import jobs
from bakeoff.core.redact import redact
from bakeoff.study.monitoring.progress import Job, ended, with_events
from bakeoff.study.remote import check_disk_full
from bakeoff.study.scheduler import RunContext
from bakeoff.study.setup.study import whole_segment

KEY = "artifacts"
"""The study's value that holds what is known of each method's saved weights."""
FP32_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 2e-2
"""Share of the loss by which padded batches of plain transformers may differ from packed lanes: in
fp32 orders of sums alone, in 16 bits every product is rounded anew (3e-4 seen on SmolLM2-135M, 9e-3
with PiSSA, which trains beside a base that has been rounded once more)."""
MIN_LOSS_SCALE = 0.1
"""Nats below which a share of the loss is no measure any more."""
OUT_OF_TIME = "saved weights are not loaded again: the study's hours are over"


def verify_saved_weights(running: RunContext) -> None:
    """Load each method's best final trial anew; write whether it is what was trained.

    What is known of a trial already stays, failures aside. With a deadline that has no room for
    it, it is left and said.
    """
    study, store, progress = running.study, running.store, running.progress
    with running.read() as reader:
        known, briefs = dict(reader.values(KEY).get(KEY, {})), reader.summaries()
    names = [entry.name for entry in study.entries]
    finals = [TrialRun(b.trial, b.result) for b in briefs if b.trial.phase == "final"]
    best = (best_final_run(r for r in finals if r.trial.method.name == name) for name in names)
    picked = [run for run in best if run is not None]
    todo = [run for run in picked if not _is_verified(known.get(run.trial.method.name), run)]
    progress.phase("Reload", len(picked), len(picked) - len(todo))
    deadline = running.deadline
    if todo and deadline is not None and not deadline.allows(sum(map(_expected_seconds, todo))):
        progress.say(OUT_OF_TIME)
        return
    works = [Job("reload", r.trial.method.name, r.trial.method.title, (r.trial.id,)) for r in todo]
    payloads = [whole_segment(study, [run.trial]).to_json() for run in todo]
    for outcome in running.executor.map(
        jobs.RELOAD_WEIGHTS, with_events(progress, works, payloads)
    ):
        check_disk_full(study.folder, outcome)
        run = todo[outcome.index]
        found = outcome.value or {"loss": None, "path": None, "error": outcome.error}
        made = _artifact_record(run, found)
        known[run.trial.method.name] = made
        store.set(KEY, known)
        progress.advance(run.trial.method.name)
        ended(progress, works[outcome.index])
        if (said := weights_problem(run.trial.method.title, made)) is not None:
            progress.say(said)
    running.stop.check()


def losses_match(loss: float, again: float, precision: str) -> bool:
    """Tell whether a loss of weights loaded anew is that of the end of training, but for rounding.

    Both are in nats; ``precision`` is the study's.
    """
    share = FP32_TOLERANCE if precision == "fp32" else ROUNDED_TOLERANCE
    return abs(again - loss) <= share * max(abs(loss), MIN_LOSS_SCALE)


def _is_verified(artifact: Mapping[str, Any] | None, run: TrialRun) -> bool:
    if artifact is None or artifact["error"] is not None:
        return False
    return bool(artifact["trial_id"] == run.trial.id)


def _expected_seconds(run: TrialRun) -> float:
    """Return about what it takes: what its trial took to load and to be evaluated."""
    if run.result is None:
        return 0.0
    return (run.result.load_seconds or 0.0) + (run.result.evaluation_seconds or 0.0)


def _artifact_record(run: TrialRun, found: Mapping[str, Any]) -> dict[str, Any]:
    loss, again, precision = run.validation_loss, found["loss"], run.trial.conditions.precision
    return {
        "trial_id": run.trial.id,
        "seed": run.trial.seed,
        "path": found["path"],
        "loss": loss,
        "reloaded_loss": again,
        "same": None if loss is None or again is None else losses_match(loss, again, precision),
        "error": None if found["error"] is None else redact(found["error"]),
    }
