"""Whose weights a method hands out, and whether they are what was trained.

Stands between the final trials and the report: ``artifacts`` loads those weights anew and writes
what it found; here that is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bakeoff.analysis.trial_runs import MethodRuns, TrialRun
from bakeoff.core.record import StudyRecord


def best_final_run(runs: Iterable[TrialRun]) -> TrialRun | None:
    """Return the final trial whose weights are handed out: the lowest loss on validation.

    Never the best on test: its score there would be better than its like. None: none is done.
    """
    done = [(loss, run) for run in runs if run.done and (loss := run.validation_loss) is not None]
    return min(done, key=lambda pair: (pair[0], pair[1].trial.seed))[1] if done else None


def artifact_row(record: StudyRecord, runs: MethodRuns) -> dict[str, Any] | None:
    """Return what is known of a method's weights; None where they were not loaded again (yet)."""
    run, found = best_final_run(runs.final), record.artifacts.get(runs.method)
    return found if run is not None and found and found["trial_id"] == run.trial.id else None


def weights_problem(title: str, found: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a method's saved weights as one sentence, None if nothing is."""
    if found["error"] is not None:
        return f"{title}: what was saved could not be loaded again: {found['error']}"
    if found["same"]:
        return None
    return (
        f"{title}: what was saved is not what was trained: in plain PEFT its validation loss is "
        f"{found['reloaded_loss']:.4g}, at the end of training it was {found['loss']:.4g}"
    )
