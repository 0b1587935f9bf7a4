"""The weights that a method exports, and whether they reload as trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bakeoff.analysis.trial_runs import MethodRuns, TrialRun
from bakeoff.core.record import StudyRecord


def best_final_run(runs: Iterable[TrialRun]) -> TrialRun | None:
    """Return the final trial whose weights are exported: the one with the lowest validation loss.

    Choosing it on test would bias its test score. None if no final trial succeeded.
    """
    done = [(loss, run) for run in runs if run.done and (loss := run.validation_loss) is not None]
    return min(done, key=lambda pair: (pair[0], pair[1].trial.seed))[1] if done else None


def artifact_row(record: StudyRecord, runs: MethodRuns) -> dict[str, Any] | None:
    """Return the result of reloading a method's weights; None if they were not reloaded yet."""
    run, artifact = best_final_run(runs.final), record.artifacts.get(runs.method)
    if run is None or not artifact or artifact["trial_id"] != run.trial.id:
        return None
    return artifact


def weights_problem(title: str, artifact: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a method's saved weights in one sentence; None if nothing is."""
    if artifact["error"] is not None:
        return f"{title}: the saved weights could not be loaded: {artifact['error']}"
    if artifact["same"]:
        return None
    return (
        f"{title}: the saved weights are not the trained ones: in plain PEFT their validation loss "
        f"is {artifact['reloaded_loss']:.4g}, at the end of training it was {artifact['loss']:.4g}"
    )
