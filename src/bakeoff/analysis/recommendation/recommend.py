"""The recommended method, and one sentence with the evidence, for what the study prefers.

"Keep the control" is an answer like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeoff.analysis.compare import ALPHA, Verdict
from bakeoff.analysis.evidence import describe_gain, describe_sample, direction_note
from bakeoff.analysis.pareto import QUALITY
from bakeoff.analysis.per_method.accelerators import has_extra_accelerators
from bakeoff.analysis.recommendation.not_learnt import (
    control_has_learnt,
    may_have_learnt,
    not_learnt_sentence,
)
from bakeoff.analysis.recommendation.preferences import SERVING, can_be_served, choose_by_weights
from bakeoff.analysis.recommendation.replicated import better_sentence, keep_sentence
from bakeoff.analysis.recommendation.saving_sentences import (
    saving_sentence,
    serving_sentence,
    weights_sentence,
)
from bakeoff.core.format import (
    format_difference,
    format_interval,
    format_saving,
    format_value,
    plural,
)
from bakeoff.core.record import StudyRecord

Row = dict[str, Any]
# An equivalent method's saving of this share or more is named in the sentence.
MIN_SAVING = 0.1


@dataclass(frozen=True)
class Recommendation:
    """The recommended method, None while the evidence supports none, and the sentence.

    ``weighed`` is each method's weighted gain over the control (``choose_by_weights``); None if the
    study prefers quality.
    """

    method: str | None
    sentence: str
    weighed: dict[str, float | None] | None = None


def recommend(record: StudyRecord, rows: Sequence[Row], *, complete: bool) -> Recommendation:
    """Recommend the preferred method among those that are not worse, else the control."""
    control = next((r for r in rows if r["method"] == record.control), None)
    if control is None or control["score"] is None:
        return _without_control(record, rows, control, complete)
    if record.imported and record.imported.no_interval:
        return _without_intervals(record, rows, control, record.imported.no_interval)
    prefer = record.prefer
    if control_has_learnt(rows) is False:
        advice = Recommendation(None, not_learnt_sentence(record, control, rows))
    elif prefer == QUALITY:
        advice = _recommend_by_quality(record, control, rows)
    else:
        advice = _recommend_by_weights(record, control, rows, prefer)
    sentence = advice.sentence + _unfinished_note(rows, complete)
    return Recommendation(advice.method, sentence, advice.weighed)


def _recommend_by_quality(record: StudyRecord, control: Row, rows: Sequence[Row]) -> Recommendation:
    """Recommend the best of the better contenders, else the control."""
    compared = [r for r in rows if r["difference"] is not None]
    better = [r for r in compared if r["verdict"] == Verdict.BETTER]
    if record.rounds is not None:
        return _recommend_replicated(record, control, compared, better)
    if better:
        best = _best_row(record, better)
        reason = describe_gain(record, control, best, len(compared))
        return Recommendation(best["method"], f"Use {best['title']}: {reason}.")
    sentence = f"Keep {control['title']}: {_no_gain_reason(record, control, compared)}."
    return Recommendation(control["method"], sentence + _cheaper_equivalents(control, compared))


def _recommend_replicated(
    record: StudyRecord, control: Row, compared: Sequence[Row], better: Sequence[Row]
) -> Recommendation:
    """Recommend by quality where each seed repeated the whole procedure."""
    if better:
        best = _best_row(record, better)
        sentence = better_sentence(record, control, best, len(better))
        return Recommendation(best["method"], sentence)
    sentence = keep_sentence(record, control, compared)
    return Recommendation(control["method"], sentence + _cheaper_equivalents(control, compared))


def _recommend_by_weights(
    record: StudyRecord, control: Row, rows: Sequence[Row], prefer: str | Mapping[str, float]
) -> Recommendation:
    """Recommend the largest weighted gain; a single word is the weight 1 for one axis."""
    weights = {prefer: 1.0} if isinstance(prefer, str) else prefer
    # with serving as the only preference, methods that cannot be served are no candidates
    candidates = [r for r in rows if prefer != SERVING or r is control or can_be_served(record, r)]
    weighed = choose_by_weights(record, control, candidates, weights)
    if prefer == SERVING:
        sentence = serving_sentence(record, control, rows, weighed)
    elif isinstance(prefer, str):
        sentence = saving_sentence(record, control, rows, weighed, prefer)
    else:
        sentence = weights_sentence(record, control, rows, weighed, prefer)
    return Recommendation(weighed.chosen["method"], sentence, weighed.totals)


def _without_control(
    record: StudyRecord, rows: Sequence[Row], control: Row | None, complete: bool
) -> Recommendation:
    """Explain that nothing can be compared without the control's scores."""
    name = control["title"] if control else record.titles.get(record.control, record.control)
    if not complete:
        done = sum(result is not None for _, result in record.trials)
        return Recommendation(
            None,
            f"No recommendation yet: {name}, the control, has no test score "
            f"({done} of {len(record.trials)} planned trials finished).",
        )
    why = f" ({_status_text(control)})" if control else ""
    scored = [r for r in rows if r["score"] is not None]
    sentence = f"No recommendation: {name}, the control, has no test score{why}"
    if scored:
        best = _best_row(record, scored)
        level = format_value(record, best["score"]["estimate"])
        sentence += (
            f"; the best score is that of {best['title']}, {level}, which cannot be compared"
        )
    return Recommendation(None, sentence + ".")


def _without_intervals(
    record: StudyRecord, rows: Sequence[Row], control: Row, reason: str
) -> Recommendation:
    """Report the best score where the scores have no intervals, without a verdict."""
    best = _best_row(record, [r for r in rows if r["score"]])
    value = format_value(record, best["score"]["estimate"])
    baseline = format_value(record, control["score"]["estimate"])
    against = "" if best is control else f", against {baseline} of {control['title']}"
    sentence = f"No verdict: {reason}. The best score is that of {best['title']}, {value}{against}."
    return Recommendation(None, sentence)


def _no_gain_reason(record: StudyRecord, control: Row, compared: Sequence[Row]) -> str:
    """Explain that nothing beats the control, and name the best contender."""
    if not compared:
        score = control["score"]
        return (
            f"no contender has a test score to compare ({control['title']}: "
            f"{format_value(record, score['estimate'])}, "
            f"{describe_sample(record, control, control)})"
        )
    best = _best_row(record, compared)
    lead = "no contender is better by more than chance"
    if all(r["verdict"] == Verdict.WORSE for r in compared):
        lead = "every contender is worse by more than chance"
    elif any(_is_better_beyond_chance(record, r) for r in compared):
        # significantly better and yet equivalent: the gain is real but below the margin
        lead = f"no contender is better by {format_value(record, record.margin)} or more"
    difference = best["difference"]
    return (
        f"{lead} (best: {best['title']} {format_difference(record, difference['estimate'])}"
        f"{direction_note(record)}, {format_interval(record, difference)}, "
        f"{describe_sample(record, control, best)})"
    )


def _is_better_beyond_chance(record: StudyRecord, row: Row) -> bool:
    sign = 1 if record.metric.better == "higher" else -1
    difference = row["difference"]
    return bool(difference["p_adjusted"] < ALPHA and sign * difference["estimate"] > 0)


def _cheaper_equivalents(control: Row, compared: Sequence[Row]) -> str:
    """List the equivalent contenders that need clearly less memory or fewer parameters."""
    savings_by_method = []
    for row in compared:
        if row["verdict"] != Verdict.EQUIVALENT or not may_have_learnt(row):
            continue
        savings = [
            f"{format_saving(saving)} {word}"
            for key, word in (
                ("train_peak_bytes", "less training memory"),
                ("trainable_parameters", "fewer trained parameters"),
            )
            if (saving := _saved_share(control, row, key)) is not None
        ]
        if savings:
            savings_by_method.append(f"{row['title']} ({' and '.join(savings)})")
    if not savings_by_method:
        return ""
    return f" Equivalent within the margin and cheaper: {', '.join(savings_by_method)}."


def _saved_share(control: Row, row: Row, key: str) -> float | None:
    """Return the share of a cost that a contender saves, None if below ``MIN_SAVING``."""
    cost, control_cost = row["cost"][key], control["cost"][key]
    kinds_differ = row["cost"]["memory_kind"] != control["cost"]["memory_kind"]
    # a cost measured with an accelerator that the control lacks says nothing about the method
    unlike = kinds_differ or has_extra_accelerators(row, control)
    if cost is None or not control_cost or (key == "train_peak_bytes" and unlike):
        return None
    saving = 1 - cost / control_cost
    return saving if saving >= MIN_SAVING else None


def _unfinished_note(rows: Sequence[Row], complete: bool) -> str:
    """Return a note on an unfinished study, with the number of methods scored."""
    if complete:
        return ""
    scored = sum(r["score"] is not None for r in rows)
    of = plural(len(rows), "method")
    return f" The study is not finished: {scored} of {of} scored so far."


def _best_row(record: StudyRecord, rows: Sequence[Row]) -> Row:
    sign = 1 if record.metric.better == "higher" else -1
    return max(rows, key=lambda r: sign * r["score"]["estimate"])


def _status_text(row: Row) -> str:
    status = str(row["status"]).replace("_", " ")
    return f"{status}: {row['reason']}" if row["reason"] else status
