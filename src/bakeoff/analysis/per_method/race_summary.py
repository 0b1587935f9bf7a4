"""Summary of the race: which trials stopped where and why, and the training steps it saved."""

from __future__ import annotations

from typing import Any

from bakeoff.core.record import StudyRecord
from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial


def race_summary(record: StudyRecord) -> dict[str, Any] | None:
    """Return the ``race`` of the report; None for a study without a race."""
    race = record.race
    if race is None:
        return None
    rows = [_decision_row(d, record) for d in race["decisions"]]
    trained = sum(_steps_trained(t, r) for t, r in record.trials if r is not None)
    return {
        "rungs": race["rungs"],
        "decisions": rows,
        "methods_stopped": list(
            dict.fromkeys(r["method"] for r in rows if r["whole_method"] and not r["goes_on"])
        ),
        "steps_trained": trained,
        "steps_in_full": _steps_without_race(record, race.get("seeds", 0)),
        **({"first_rung": race["first_rung"]} if "first_rung" in race else {}),
    }


def _decision_row(decision: dict[str, Any], record: StudyRecord) -> dict[str, Any]:
    trials = {t.id: t for t, _ in record.trials}
    trial = trials.get(decision["trial_id"])
    # in a replicate every seed has a race of its own
    replicate = {"seed": trial.seed} if trial and trial.phase == "replicate" else {}
    numbers = decision["numbers"]
    continues = any(
        d["goes_on"]
        for d in (record.race or {})["decisions"]
        if d["step"] == decision["step"] and d["method"] == decision["method"]
    )
    return {
        **decision,
        **replicate,
        "learning_rate": trial.learning_rate if trial else None,
        "mean_loss": numbers.get("mean_loss"),
        "whole_method": not continues,
    }


def _steps_trained(trial: Trial, result: TrialResult) -> int:
    if result.step is not None:
        return result.step
    return result.diverged_at_step or trial.conditions.steps


def _steps_without_race(record: StudyRecord, seeds: int) -> int:
    """Return the training steps of the same settings and seeds without a race."""
    searched = sum(t.conditions.steps for t, _ in record.trials if t.phase != "final")
    if any(t.phase == "replicate" for t, _ in record.trials):
        return searched
    compatible = [m for m in record.methods if m not in record.incompatible]
    return searched + seeds * len(compatible) * record.steps
