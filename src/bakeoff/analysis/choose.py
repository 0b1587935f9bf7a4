"""Choose each method's setting on validation, never on test.

Stands between the search and the final phase: the plan of the final trials calls it, and so does
the summary, so that what is reported is what was run.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from bakeoff.analysis.runs import Run, setting_key
from bakeoff.results import TrialResult
from bakeoff.trial import Trial


def choose_settings(
    record_trials: Iterable[tuple[Trial, TrialResult | None]],
) -> dict[str, dict[str, Any]]:
    """Return the setting with the lowest mean validation loss of every method that has one.

    Only search trials count, and only settings all of whose finished trials are done: a setting
    that diverged at one seed is never chosen. Ties go to the lower learning rate.
    """
    tried: dict[str, dict[str, list[Run]]] = {}
    for trial, result in record_trials:
        if trial.phase == "search" and result is not None:
            settings = tried.setdefault(trial.method.name, {})
            settings.setdefault(setting_key(trial.setting), []).append(Run(trial, result))
    chosen = {}
    for method, settings in tried.items():
        ranked = [rank for runs in settings.values() if (rank := _rank(runs)) is not None]
        if ranked:
            best = min(ranked)[2]
            chosen[method] = settings[best][0].trial.setting
    return chosen


def _rank(runs: list[Run]) -> tuple[float, float, str] | None:
    """Return what one setting is ordered by, None when it cannot be chosen."""
    losses = [run.validation_loss for run in runs if run.done]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(runs):
        return None
    trial = runs[0].trial
    return fmean(known), trial.learning_rate, setting_key(trial.setting)
