"""One row of the report per method, and one per trial or probe that failed.

A method without any result has a row, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.choose import SelectionComparison, compare_selection
from bakeoff.analysis.compare import Comparison, Interval, Verdict
from bakeoff.analysis.error_distribution import FloatArray
from bakeoff.analysis.learning import Learning
from bakeoff.analysis.per_method.accelerators import engine_row
from bakeoff.analysis.per_method.best_weights import artifact_row
from bakeoff.analysis.per_method.stability import is_unfinished, stability_row, stopped_by_race
from bakeoff.analysis.trial_runs import (
    NOT_FINISHED,
    MethodRuns,
    TrialRun,
    diverged_seeds,
    setting_key,
    stand_in_scores,
)
from bakeoff.core.record import ImportedScores, StudyRecord
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import REPLICATE

_FROM_PROBE = (
    "train_tokens_per_second",
    "step_milliseconds",
    "train_peak_bytes",
    "memory_kind",
    "base_bytes",
    "lanes_ratio",
    "lanes_timed",
    "probe_seconds",
)
_INFERENCE = ("inference_milliseconds", "inference_merged_milliseconds")
"""Milliseconds per example; None where not measured."""


@dataclass(frozen=True)
class Evidence:
    """Statistics by method; a method without scores is in none of them.

    ``n_seeds`` counts the seeds behind each estimate, ``draws`` holds resampled scores.
    """

    scores: Mapping[str, Scores]
    estimates: Mapping[str, Interval]
    comparisons: Mapping[str, Comparison]
    n_seeds: Mapping[str, int]
    draws: Mapping[str, FloatArray]


@dataclass(frozen=True)
class Extras:
    """Parts of the rows that are computed over all methods at once, by method."""

    forgetting: Mapping[str, dict[str, Any]]
    gains: Mapping[str, Interval]
    secondary: Mapping[str, dict[str, Any]]
    front_probabilities: Mapping[str, float]
    learning: Mapping[str, Learning]


@dataclass(frozen=True)
class MethodEnding:
    """Status of a method as a whole, and the reason."""

    status: Status
    reason: str | None


def method_row(
    record: StudyRecord,
    runs: MethodRuns,
    control: MethodRuns,
    chosen: dict[str, Any] | None,
    evidence: Evidence,
    extras: Extras,
) -> dict[str, Any]:
    """Build a method's row; ``chosen`` is its setting, None while it has none."""
    method = runs.method
    end = method_ending(record, runs)
    gain = extras.gains.get(method)
    point = front_point(record, runs, evidence, extras.forgetting)
    comparison = evidence.comparisons.get(method)
    to_control = steps_to_control_loss(runs, control)
    tried = _count_settings(runs)
    picked = _compare_selections(runs, record.metric.better)
    agreement = _agreement(runs, chosen)
    return {
        "method": method,
        "title": record.titles.get(method, method),
        "status": end.status,
        "reason": end.reason or _missing_interval_reason(record, method),
        "setting": chosen or {},
        "n_settings": tried,
        "n_settings_added": max(0, tried - record.settings) if record.settings else None,
        "n_seeds": evidence.n_seeds.get(method, 0),
        "score": point["score"],
        "difference": _difference_row(comparison),
        "verdict": _verdict(record, method, comparison),
        "cost": point["cost"],
        "artifact": artifact_row(record, runs),
        "engine": engine_row(record, runs),
        "gain": asdict(gain) if gain else None,
        **({"learning": known.to_json()} if (known := extras.learning.get(method)) else {}),
        "secondary": extras.secondary.get(method) or None,
        "forgetting": point["forgetting"],
        "stability": stability_row(
            runs, evidence.scores.get(method), record.metric, record.margin, to_control
        ),
        "front_probability": extras.front_probabilities.get(method),
        "steps_to_control_loss": to_control,
        "n_trials_diverged": sum(r.status is Status.DIVERGED for r in runs.all),
        "n_trials_failed": sum(_has_failed(r) for r in runs.all),
        "best_setting_on_edge": is_on_edge(runs, chosen),
        "picked": asdict(picked) if picked else None,
        **({"agreement": agreement} if agreement else {}),
        "settings": [_setting_row(r, runs, chosen) for r in runs.search],
        "seeds": _seed_rows(record, runs),
        "curves": [_curve_row(r, r.result) for r in runs.all if r.result and r.result.curve],
        "reported": scores.figures if (scores := _imported_scores(record, method)) else None,
    }


def _count_settings(runs: MethodRuns) -> int:
    """Return how many settings were tried, in the replicate that tried the most."""
    by_seed: dict[int, set[str]] = {}
    for run in runs.search or runs.final:
        by_seed.setdefault(run.trial.seed, set()).add(setting_key(run.trial.setting))
    return max(map(len, by_seed.values()), default=0)


def _compare_selections(runs: MethodRuns, better: str) -> SelectionComparison | None:
    """Compare the choices by loss and by metric: of the first replicate in which they differ."""
    seeds = dict.fromkeys(run.trial.seed for run in runs.search)
    found = [
        picked
        for seed in seeds
        if (picked := compare_selection([r for r in runs.search if r.trial.seed == seed], better))
    ]
    return min(found, key=lambda picked: picked.agree, default=None)


def _agreement(runs: MethodRuns, chosen: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how many replicates chose the recommended setting; None without replicates."""
    if chosen is None or not any(run.trial.phase == REPLICATE for run in runs.final):
        return None
    alike = [setting_key(run.trial.setting) == setting_key(chosen) for run in runs.final]
    return {"chosen": sum(alike), "replicates": len(alike)}


def front_point(
    record: StudyRecord,
    runs: MethodRuns,
    evidence: Evidence,
    forgetting: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Build the part of a method's row that the Pareto fronts are computed from.

    ``forgetting`` is what the study measured, by method; an imported value goes first.
    """
    estimate = evidence.estimates.get(runs.method)
    return {
        "method": runs.method,
        "score": asdict(estimate) if estimate else None,
        "cost": _cost_row(record, runs),
        "forgetting": _imported_forgetting(record, runs.method) or forgetting.get(runs.method),
    }


def method_ending(record: StudyRecord, runs: MethodRuns) -> MethodEnding:
    """Return a method's status: done if any final trial is, else its most common failure."""
    if runs.scored:
        return MethodEnding(Status.DONE, None)
    if runs.method in record.incompatible:
        return MethodEnding(Status.INCOMPATIBLE, record.incompatible[runs.method])
    decisive = runs.final or runs.search
    # a trial that lost its race says nothing about why its method has no scores
    decisive = tuple(r for r in decisive if not stopped_by_race(r)) or decisive
    unfinished = any(is_unfinished(r) for r in decisive)
    searched = not runs.final and any(r.done for r in decisive)
    if not decisive or unfinished or searched:
        return MethodEnding(Status.STOPPED, NOT_FINISHED)
    status = Counter(r.status for r in decisive).most_common(1)[0][0]
    reasons = Counter(r.reason for r in decisive if r.status is status)
    return MethodEnding(status, reasons.most_common(1)[0][0])


def steps_to_control_loss(runs: MethodRuns, control: MethodRuns) -> int | None:
    """Return the first step at which the seeds' mean loss reaches the control's final one."""
    goals = [r.validation_loss for r in control.scored]
    known = [g for g in goals if g is not None]
    if not known or not runs.scored:
        return None
    by_step: dict[int, list[float]] = {}
    for run in runs.scored:
        for point in run.result.curve if run.result else ():
            if point.validation_loss is not None:
                by_step.setdefault(point.step, []).append(point.validation_loss)
    # only steps that all seeds have, so that every mean is over the same seeds
    complete = [s for s in sorted(by_step) if len(by_step[s]) == len(runs.scored)]
    return next((s for s in complete if fmean(by_step[s]) <= fmean(known)), None)


def is_on_edge(runs: MethodRuns, chosen: dict[str, Any] | None) -> bool:
    """Return whether the chosen learning rate is the lowest or highest of several tried."""
    tried = {r.trial.learning_rate for r in runs.search}
    if chosen is None or len(tried) < 2:
        return False
    return float(chosen["learning_rate"]) in (min(tried), max(tried))


def failure_rows(record: StudyRecord, by_method: Mapping[str, MethodRuns]) -> list[dict[str, Any]]:
    """List failures and missing results: incompatible methods, cost probes, trials.

    A trial that the race stopped is not a failure: it is in its method's ``settings``, with the
    reason.
    """
    rows = []
    for method, runs in by_method.items():
        if method in record.incompatible:
            reason = record.incompatible[method]
            rows.append(_failure_row(method, None, Status.INCOMPATIBLE, reason))
        cost = record.costs.get(method)
        if cost and cost.status not in (Status.DONE, Status.INCOMPATIBLE):
            rows.append(_failure_row(method, "probe", cost.status, cost.reason))
        for run in runs.all:
            if not run.done and not stopped_by_race(run):
                trial = run.trial
                why = NOT_FINISHED if is_unfinished(run) else run.reason
                row = _failure_row(method, trial.phase, run.status, why)
                where = {"trial_id": trial.id, "seed": trial.seed, "setting": trial.setting}
                rows.append({**row, **where})
    return rows


def _imported_scores(record: StudyRecord, method: str) -> ImportedScores | None:
    return record.imported.reported.get(method) if record.imported else None


def _missing_interval_reason(record: StudyRecord, method: str) -> str | None:
    """Return why a successful imported method has no interval; None if it has one."""
    scores = _imported_scores(record, method)
    unknown = record.imported is not None and scores is not None and scores.n is None
    return record.imported.no_interval if record.imported and unknown else None


def _imported_forgetting(record: StudyRecord, method: str) -> dict[str, Any] | None:
    scores = _imported_scores(record, method)
    if scores is None or scores.forgetting is None:
        return None
    return {"estimate": scores.forgetting, "low": None, "high": None}


def _failure_row(
    method: str, phase: str | None, status: Status, reason: str | None
) -> dict[str, Any]:
    return {
        "method": method,
        "trial_id": None,
        "phase": phase,
        "seed": None,
        "setting": {},
        "status": status,
        "reason": reason,
    }


def _has_failed(run: TrialRun) -> bool:
    return run.status in (Status.FAILED, Status.OUT_OF_MEMORY, Status.INCOMPATIBLE)


def _difference_row(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    row = {
        **asdict(comparison.difference),
        "p_adjusted": comparison.p_adjusted,
        "items_needed": getattr(comparison, "items_needed", None),
        "seeds_needed": getattr(comparison, "seeds_needed", None),
    }
    if comparison.look is None:
        return row
    keys = ("replicates", "look", "items_share", "floor", "reason", "exploratory")
    return row | {key: getattr(comparison, key) for key in keys}


def _verdict(record: StudyRecord, method: str, comparison: Comparison | None) -> Verdict:
    if method == record.control:
        return Verdict.CONTROL
    return comparison.verdict if comparison else Verdict.NONE


def _cost_row(record: StudyRecord, runs: MethodRuns) -> dict[str, Any]:
    probe = record.costs.get(runs.method)
    results = [r.result for r in runs.scored if r.result]
    parameters = next((r.trainable_parameters for r in results if r.trainable_parameters), None)
    seconds = [r.train_seconds for r in results if r.train_seconds is not None]
    return {
        "trainable_parameters": parameters or (probe.trainable_parameters if probe else None),
        "adapter_bytes": next((r.adapter_bytes for r in results if r.adapter_bytes), None),
        "train_seconds": fmean(seconds) if seconds else None,
        **{key: getattr(probe, key) if probe else None for key in _FROM_PROBE},
        "train_above_base_bytes": _memory_above_base(probe),
        **{key: None if probe is None else getattr(probe, key) for key in _INFERENCE},
    }


def _memory_above_base(probe: Cost | None) -> int | None:
    """Return the memory of training above that of the base model, for any kind of measurement."""
    if probe is None or probe.train_peak_bytes is None:
        return None
    if probe.memory_kind == "rss_above_base":
        return probe.train_peak_bytes
    known = probe.base_bytes is not None and probe.memory_kind == "device"
    return max(0, probe.train_peak_bytes - (probe.base_bytes or 0)) if known else None


def _setting_row(run: TrialRun, runs: MethodRuns, chosen: dict[str, Any] | None) -> dict[str, Any]:
    replicate = {"seed": run.trial.seed, "step": run.result.step if run.result else None}
    in_replicate = run.trial.phase == REPLICATE
    scored = {r.trial.id for r in runs.final}
    alike = chosen is not None and setting_key(run.trial.setting) == setting_key(chosen)
    return {
        "setting": run.trial.setting,
        "status": run.status,
        "reason": NOT_FINISHED if is_unfinished(run) else run.reason,
        "validation_loss": run.validation_loss,
        "validation_score": run.mean_score("validation"),
        "chosen": run.trial.id in scored if in_replicate else alike,
        **(replicate if in_replicate else {}),
    }


def _seed_rows(record: StudyRecord, runs: MethodRuns) -> list[dict[str, Any]]:
    """Return a row for each seed; a replicate whose settings all diverged has stand-in scores."""
    rows = [_seed_row(run) for run in runs.final]
    stand_in = stand_in_scores(record)
    for seed in diverged_seeds(runs) if stand_in else ():
        assert stand_in is not None
        source, scores = stand_in
        rows.append(
            {
                "seed": seed,
                "trial_id": None,
                "status": Status.DIVERGED,
                "test_score": math.fsum(scores) / len(scores),
                "validation_loss": None,
                "setting": None,
                "stood_in": source,
            }
        )
    return sorted(rows, key=lambda row: row["seed"])


def _seed_row(run: TrialRun) -> dict[str, Any]:
    in_replicate = run.trial.phase == REPLICATE
    return {
        **({"setting": run.trial.setting, "stood_in": None} if in_replicate else {}),
        "seed": run.trial.seed,
        "trial_id": run.trial.id,
        "status": run.status,
        "test_score": run.mean_score("test"),
        "validation_loss": run.validation_loss,
        **({} if (cut := count_cut_answers(run)) is None else {"cut_answers": cut}),
    }


def count_cut_answers(run: TrialRun) -> int | None:
    """Return how many test answers the limit of new tokens ended; None if nothing is generated."""
    test = run.result.splits.get("test") if run.result else None
    return None if test is None else test.cut


def _curve_row(run: TrialRun, result: TrialResult) -> dict[str, Any]:
    return {
        "trial_id": run.trial.id,
        "seed": run.trial.seed,
        "phase": run.trial.phase,
        "learning_rate": run.trial.learning_rate,
        "points": [asdict(point) for point in result.curve],
    }
