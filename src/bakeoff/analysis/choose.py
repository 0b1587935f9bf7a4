"""Choice of each method's hyperparameter setting on validation, never on test.

A setting is chosen on its mean validation loss or its mean validation score (``budget.select_on``).
Where both were measured, ``compare_selection`` tells whether they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from bakeoff.analysis.trial_runs import TrialRun, setting_key
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import Trial

SIGNIFICANT_ERRORS = 2.0
"""Standard errors beyond which two settings' scores on the same items differ significantly."""


@dataclass(frozen=True)
class SelectionComparison:
    """The choices by loss and by metric among ``compared`` settings at one ``step``."""

    by_loss: dict[str, Any]
    by_metric: dict[str, Any]
    agree: bool
    compared: int
    step: int


def selection_value(run: TrialRun, select_on: str, better: str) -> float | None:
    """Return the value on which a trial's setting is chosen, lower is better; None if unknown.

    ``select_on`` is ``loss`` or ``metric``; ``better`` is the metric's direction.
    """
    if select_on == "loss":
        return run.validation_loss
    score = run.mean_score("validation")
    return None if score is None else _lower_is_better(score, better)


def choose_settings(
    record_trials: Iterable[tuple[Trial, TrialResult | None]],
    select_on: str = "loss",
    better: str = "higher",
) -> dict[str, dict[str, Any]]:
    """Return the best setting on validation of every method that has one.

    Only search trials count, and only settings all of whose finished trials succeeded: a setting
    that diverged at one seed is never chosen. Ties go to the lower loss, then to the lower learning
    rate.
    """
    tried: dict[str, dict[str, list[TrialRun]]] = {}
    for trial, result in record_trials:
        if trial.phase == "search" and result is not None:
            settings = tried.setdefault(trial.method.name, {})
            settings.setdefault(setting_key(trial.setting), []).append(TrialRun(trial, result))
    chosen = {}
    for method, settings in tried.items():
        ranked = [
            rank for runs in settings.values() if (rank := _selection_rank(runs, select_on, better))
        ]
        if ranked:
            best = min(ranked)[-1]
            chosen[method] = settings[best][0].trial.setting
    return chosen


def recommended_setting(chosen: Sequence[TrialRun]) -> dict[str, Any] | None:
    """Return the setting that most replicates chose; ties go to the lower mean validation loss.

    ``chosen`` are the trials that their replicates scored on test. None without any.
    """
    by_setting: dict[str, list[TrialRun]] = {}
    for run in chosen:
        by_setting.setdefault(setting_key(run.trial.setting), []).append(run)

    def rank(key: str) -> tuple[int, float, str]:
        losses = [r.validation_loss for r in by_setting[key]]
        known = [loss for loss in losses if loss is not None]
        return -len(by_setting[key]), fmean(known) if known else math.inf, key

    return by_setting[min(by_setting, key=rank)][0].trial.setting if by_setting else None


def compare_selection(runs: Sequence[TrialRun], better: str) -> SelectionComparison | None:
    """Compare the settings that loss and metric choose among a method's search trials.

    Only trials that have both at the latest step reached count; None for fewer than two. The two
    agree unless the metric's choice scores significantly better: by more than
    ``SIGNIFICANT_ERRORS`` standard errors of the differences by item.
    """
    both = [
        (_last_step(run), loss, score, run)
        for run in runs
        if run.result is not None and run.status in (Status.DONE, Status.STOPPED)
        if (loss := run.validation_loss) is not None
        if (score := run.mean_score("validation")) is not None
    ]
    last = max((step for step, *_ in both), default=0)
    compared = [
        (loss, _lower_is_better(score, better), run)
        for step, loss, score, run in both
        if step == last
    ]
    if len(compared) < 2:
        return None
    by_loss = min(compared, key=lambda t: (t[0], t[2].trial.learning_rate))[2]
    by_metric = min(compared, key=lambda t: (t[1], t[0], t[2].trial.learning_rate))[2]
    agree = not _differ_beyond_chance(by_loss, by_metric)
    chosen = by_loss if agree else by_metric
    return SelectionComparison(
        by_loss.trial.setting, chosen.trial.setting, agree, len(compared), last
    )


def _selection_rank(
    runs: list[TrialRun], select_on: str, better: str
) -> tuple[float, float, float, str] | None:
    """Return the sort key of one setting, None if it cannot be chosen."""
    done = [run for run in runs if run.done]
    losses = [loss for run in done if (loss := run.validation_loss) is not None]
    values = [v for run in done if (v := selection_value(run, select_on, better)) is not None]
    if len(values) < len(runs) or len(losses) < len(runs):
        return None
    trial = runs[0].trial
    return fmean(values), fmean(losses), trial.learning_rate, setting_key(trial.setting)


def _differ_beyond_chance(one: TrialRun, other: TrialRun) -> bool:
    """Return whether two trials' validation scores differ significantly, paired by item."""
    pairs = [r.result.splits["validation"].scores for r in (one, other) if r.result is not None]
    differences = [a - b for a, b in zip(*pairs, strict=True)]
    if len(differences) < 2:
        return False
    error = stdev(differences) / math.sqrt(len(differences))
    return bool(abs(fmean(differences)) > SIGNIFICANT_ERRORS * error)


def _lower_is_better(score: float, better: str) -> float:
    return -score if better == "higher" else score


def _last_step(run: TrialRun) -> int:
    known = run.result.step if run.result else None
    return run.trial.conditions.steps if known is None else known
