"""The report dict of a study, finished or not: the source of report, command line and live view.

Nothing is dropped: a failure is a row with its reason, a missing value is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from enum import Enum
from typing import Any

import numpy as np

from bakeoff.analysis import count_intervals
from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.choose import choose_settings, recommended_setting
from bakeoff.analysis.compare import Comparison, compare, estimate_scores
from bakeoff.analysis.confidence_set import LEVEL, better_probabilities, confidence_set
from bakeoff.analysis.evidence import small_test_set_warnings
from bakeoff.analysis.head_sensitivity import head_section, sensitivity_warning
from bakeoff.analysis.identical import find_identical, unapplied_settings
from bakeoff.analysis.item_groups import groups_section
from bakeoff.analysis.learning import (
    Learning,
    assess_learning,
    find_baselines,
    withhold_verdicts,
)
from bakeoff.analysis.pareto import draw_scores, find_fronts
from bakeoff.analysis.per_method.caveats import not_learnt_caveat, row_caveats
from bakeoff.analysis.per_method.control_tuning import control_tuning
from bakeoff.analysis.per_method.forgetting import forgetting_rows
from bakeoff.analysis.per_method.gain_over_base import base_row, gains_over_base
from bakeoff.analysis.per_method.items import item_summary
from bakeoff.analysis.per_method.method_rows import (
    Evidence,
    Extras,
    failure_rows,
    front_point,
    method_row,
)
from bakeoff.analysis.per_method.race_summary import race_summary
from bakeoff.analysis.per_method.secondary import secondary_rows
from bakeoff.analysis.per_method.stability import is_unfinished
from bakeoff.analysis.recommendation.not_learnt import control_has_learnt
from bakeoff.analysis.recommendation.recommend import recommend
from bakeoff.analysis.study_looks import rounds_have_ended, rounds_section, study_comparisons
from bakeoff.analysis.trial_runs import (
    MethodRuns,
    TrialRun,
    method_scores,
    runs_by_method,
)
from bakeoff.core.record import ImportedScores, StudyRecord
from bakeoff.core.results import TrialResult
from bakeoff.core.warning_codes import merge_caveats, sort_warnings, with_code

SCHEMA = 1


def summarise(record: StudyRecord, rng: np.random.Generator) -> dict[str, Any]:
    """Build the report dict of a study, finished or not; equal ``rng`` states give equal bits."""
    learning_rng = rng.spawn(1)[0]  # draws of its own: those of ``rng`` stay as they were
    by_method = runs_by_method(record)
    control = by_method.get(record.control, MethodRuns(record.control, (), ()))
    chosen = chosen_settings(record, by_method)
    evidence = _gather_evidence(record, by_method, rng)
    learning = assess_learning(evidence.scores, find_baselines(record), record.metric, learning_rng)
    withheld = withhold_verdicts(evidence.comparisons, learning, record.control)
    evidence = replace(evidence, comparisons=withheld)
    # All of these draw from ``rng``: their order is part of the result.
    forgetting = forgetting_rows(by_method, rng)
    gains = gains_over_base(record, evidence.scores, rng)
    base = base_row(record, rng)
    secondary = secondary_rows(record, by_method, evidence.scores, rng)
    points = _sort_rows(
        record, [front_point(record, runs, evidence, forgetting) for runs in by_method.values()]
    )
    fronts = find_fronts(points, evidence.draws, record.pareto, better=record.metric.better)
    extras = Extras(forgetting, gains, secondary, fronts.probabilities, learning)
    rows = [
        method_row(record, by_method[method], control, chosen.get(method), evidence, extras)
        for method in (point["method"] for point in points)
    ]
    complete = is_complete(record, by_method)
    advice = recommend(record, rows, complete=complete)
    identical = find_identical(record, by_method)
    head = head_section(record, evidence.scores, evidence.comparisons)
    report = {
        "schema": SCHEMA,
        "study": _study_section(record),
        "base": base,
        "methods": rows,
        "pareto": fronts.plots,
        "front": fronts.joint,
        "recommendation": {**asdict(advice), "prefer": record.prefer},
        "hours": _hours_section(record),
        "sizes": record.sizes,
        "race": race_summary(record),
        **_replicate_sections(record, control, evidence),
        # without a baseline, and without twins, there is nothing to say
        **({"learning": _learning_section(record, learning)} if learning else {}),
        **({"identical": identical} if identical else {}),
        **({"groups": groups} if (groups := groups_section(record, evidence.scores)) else {}),
        **({"head": head} if head else {}),
        "items": item_summary(record, by_method, evidence.scores),
        "failures": failure_rows(record, by_method),
        "retried": list(record.retried),
        "warnings": _collect_warnings(record, by_method, rows, evidence, identical, head),
        "timing": _timing_section(record),
        "complete": complete,
        "provenance": record.provenance,
        "imported": _imported_section(record),
    }
    plain: dict[str, Any] = _to_json_values(report)
    return plain


def _replicate_sections(
    record: StudyRecord, control: MethodRuns, evidence: Evidence
) -> dict[str, Any]:
    """Return the parts of the report that only studies of replicates have."""
    if record.rounds is None:
        return {}
    better, draws = record.metric.better, evidence.draws
    sections = {"rounds": rounds_section(record), "control_tuning": control_tuning(control)}
    if len(draws) > 1:
        methods = list(confidence_set(draws, better=better, level=LEVEL))
        sections["best_set"] = {"methods": methods, "level": LEVEL}
        sections["better_probabilities"] = better_probabilities(draws, better=better)
    return sections


def chosen_settings(
    record: StudyRecord, by_method: Mapping[str, MethodRuns]
) -> dict[str, dict[str, Any]]:
    """Return each method's setting: that of its final trials, else the finished search's choice.

    In replicates it is the one that most of them chose.
    """
    if record.rounds is not None:
        found = {m: recommended_setting(runs.final) for m, runs in by_method.items()}
        return {m: setting for m, setting in found.items() if setting is not None}
    search = [run for runs in by_method.values() for run in runs.search]
    complete = bool(search) and not any(is_unfinished(run) for run in search)
    chosen = search_choices(record) if complete else {}
    ran = {m: runs.final[0].trial.setting for m, runs in by_method.items() if runs.final}
    return {**chosen, **ran}


def search_choices(record: StudyRecord) -> dict[str, dict[str, Any]]:
    """Return the settings that the search would choose now, by method."""
    return choose_settings(record.trials, record.select_on, record.metric.better)


def is_complete(record: StudyRecord, by_method: Mapping[str, MethodRuns]) -> bool:
    """Return whether nothing is left to train.

    Every planned trial has a result, every compatible method has trials, and every method with a
    chosen setting has final trials.
    """
    if any(is_unfinished(TrialRun(trial, result)) for trial, result in record.trials):
        return False
    if record.rounds is not None:
        return rounds_have_ended(record)
    chosen = search_choices(record)
    return all(
        runs.final or (runs.search and method not in chosen)
        for method, runs in by_method.items()
        if method not in record.incompatible
    )


def _gather_evidence(
    record: StudyRecord, by_method: Mapping[str, MethodRuns], rng: np.random.Generator
) -> Evidence:
    if record.imported is not None:
        return _imported_evidence(record, record.imported.reported, rng)
    scores, metric = method_scores(record, by_method), record.metric
    comparisons = _compare_methods(record, scores, rng)
    estimates = estimate_scores(scores, rng, low=metric.low, high=metric.high)
    n_seeds = {method: len(own.seeds) for method, own in scores.items()}
    draws = draw_scores(scores, record.control, rng)
    return Evidence(scores, estimates, comparisons, n_seeds, draws)


def _compare_methods(
    record: StudyRecord, scores: Mapping[str, Scores], rng: np.random.Generator
) -> dict[str, Comparison]:
    """Return the comparisons with the control, by the protocol of the study."""
    if record.rounds is not None:
        return study_comparisons(record, scores)
    if record.control not in scores:
        return {}
    return compare(
        {m: s for m, s in scores.items() if m != record.control},
        scores[record.control],
        margin=record.margin,
        better=record.metric.better,
        rng=rng,
    )


def _imported_evidence(
    record: StudyRecord, reported: Mapping[str, ImportedScores], rng: np.random.Generator
) -> Evidence:
    """Return the evidence of imported runs: one seed each, no scores per item."""
    estimates, counted = (
        count_intervals.score_intervals(reported),
        count_intervals.counts_by_method(reported),
    )
    contenders = {m: c for m, c in counted.items() if m != record.control}
    comparisons = {}
    if record.control in counted:
        control, better = counted[record.control], record.metric.better
        comparisons = count_intervals.compare_counts(
            contenders, control, margin=record.margin, better=better
        )
    draws = count_intervals.draw_counts(counted, rng)
    return Evidence({}, estimates, comparisons, dict.fromkeys(estimates, 1), draws)


def _sort_rows(record: StudyRecord, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort the control first, then by score, best first; rows without a score come last."""
    sign = -1 if record.metric.better == "higher" else 1

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        score = row["score"]
        worst_first = sign * score["estimate"] if score else 0.0
        return row["method"] != record.control, score is None, worst_first

    return sorted(rows, key=rank)


def _study_section(record: StudyRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "base": record.base,
        "base_note": record.base_note,
        "task": record.task,
        "metric": record.metric.name,
        "unit": record.metric.unit,
        "better": record.metric.better,
        "margin": record.margin,
        "control": record.control,
        "n_test_items": record.n_items.get("test"),
        "n_validation_items": record.n_items.get("validation"),
        "n_train_items": record.n_items.get("train"),
        "steps": record.steps,
        "test_looks": count_test_reads(record),
        "test_changes": [
            {key: look[key] for key in ("at", "changes")} for look in record.test_reads
        ],
    }


def _learning_section(record: StudyRecord, learning: Mapping[str, Learning]) -> dict[str, Any]:
    """Return whether the control has learnt (None: unknown), and who has not."""
    control = learning.get(record.control)
    return {
        "control_learnt": None if control is None else control.learnt,
        "not_learnt": [m for m in record.methods if m in learning and not learning[m].learnt],
    }


def _imported_section(record: StudyRecord) -> dict[str, Any] | None:
    """Return the origin of an imported record; None for a study of bakeoff's own."""
    if record.imported is None:
        return None
    known = asdict(record.imported)
    del known["reported"]  # it is in the methods' rows
    return known


def count_test_reads(record: StudyRecord) -> int:
    """Return the number of test-set evaluations: 0 until a final trial is scored on test."""
    read = any(result is not None and "test" in result.splits for _, result in record.trials)
    read = read or record.imported is not None
    return 1 + len(record.test_reads) if read or record.test_reads else 0


def _collect_warnings(
    record: StudyRecord,
    by_method: Mapping[str, MethodRuns],
    rows: Sequence[dict[str, Any]],
    evidence: Evidence,
    identical: Sequence[Mapping[str, Any]],
    head: Mapping[str, Any] | None,
) -> list[str]:
    """List the caveats of the verdicts, each once, the most important first."""
    warnings = [*_repeated_read_warnings(record), *record.warnings]
    items = record.n_items.get("test")
    if items is not None:
        warnings += small_test_set_warnings(items)
    if rows and record.control not in evidence.estimates:
        name = record.titles.get(record.control, record.control)
        text = f"{name}, the control, has no test score: there are no verdicts."
        warnings.append(with_code(text, "control-without-score"))
    warnings += [with_code(group["sentence"], "identical-results") for group in identical]
    if head is not None and head.get("sensitive"):
        warnings.append(
            with_code(sensitivity_warning(record, head["sensitive"]), "head-rate-matters")
        )
    caveats = [c for row in rows for c in row_caveats(row, by_method[row["method"]], evidence)]
    for runs in by_method.values():
        if (text_or_none := unapplied_settings(record, runs)) is not None:
            warnings.append(with_code(text_or_none, "setting-not-applied"))
    if control_has_learnt(rows) is not False:  # else the recommendation's sentence says it
        caveats += [c for row in rows if (c := not_learnt_caveat(record, row)) is not None]
    return sort_warnings([*warnings, *merge_caveats(caveats)])


def _repeated_read_warnings(record: StudyRecord) -> list[str]:
    """Warn of repeated test-set evaluations: earlier results may have influenced the changes."""
    if not record.test_reads:
        return []
    changes = " ".join(
        f"Changes before evaluation {number} ({look['at']}): {'; '.join(look['changes'])}."
        for number, look in enumerate(record.test_reads, start=2)
    )
    inherited = len(record.test_reads) if record.rounds is None else record.rounds["inherited"]
    consequence = (
        "Earlier results may have influenced the changes, so the 5 % error no longer covers the "
        "verdicts of later evaluations, and these are the ones shown here."
        if inherited
        else "Verdicts stand as they were given; each further look spends half of what was left of "
        "a reserve of 0.5 %, so all verdicts together keep within 5 %."
    )
    text = f"The test set was evaluated {count_test_reads(record)} times. {changes} {consequence}"
    return [with_code(text, "test-evaluated-again")]


def _hours_section(record: StudyRecord) -> dict[str, Any] | None:
    """Return the plan of a study with a time budget and the time it took; None without one."""
    if record.hours is None:
        return None
    used = None if record.wall_seconds is None else record.wall_seconds / 3600
    looks = record.hours.get("looks")  # studies of an older protocol have a number of seeds
    seeds = {"seeds": looks[-1]} if looks else {}
    return {**record.hours, **seeds, "final_steps": record.steps, "used": used}


def _timing_section(record: StudyRecord) -> dict[str, Any]:
    results = [result for _, result in record.trials if result is not None]

    def total(read: Callable[[TrialResult], float | None]) -> float | None:
        known = [seconds for r in results if (seconds := read(r)) is not None]
        return math.fsum(known) if known else None

    return {
        "wall_seconds": record.wall_seconds,
        "train_seconds": total(lambda r: r.train_seconds),
        "evaluation_seconds": total(lambda r: r.evaluation_seconds),
        "load_seconds": total(lambda r: r.load_seconds),
    }


def _to_json_values(value: Any) -> Any:
    """Convert to JSON values: enums to names, tuples to lists, non-finite numbers to None."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _to_json_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_values(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
