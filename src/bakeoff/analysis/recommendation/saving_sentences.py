"""Sentences for studies that prefer memory, speed, size or serving over quality, or use weights.

A method is recommended for a saving only if it is shown to be better or equivalent; the sentence
may mention inconclusive ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.evidence import describe_difference, describe_sample
from bakeoff.analysis.pareto import is_cost_tie
from bakeoff.analysis.recommendation.preferences import (
    NOT_WORSE,
    WeightedChoice,
    can_be_served,
    comparable_cost,
    gain_over_control,
)
from bakeoff.core.format import (
    MINUS,
    format_cost,
    format_difference,
    format_interval,
    format_p_value,
    format_saving,
    format_value,
    plural,
)
from bakeoff.core.record import StudyRecord

Row = dict[str, Any]

NOUNS = {
    "memory": "training memory",
    "speed": "time for a training step",
    "size": "space on disk",
}
FORMS = {
    "adapter": "is saved as plain LoRA",
    "converted": "converts to LoRA without loss",
    "merged": "merges into the base",
}
MOST_NAMED = 3


def saving_sentence(
    record: StudyRecord, control: Row, rows: Sequence[Row], weighed: WeightedChoice, name: str
) -> str:
    """Recommend the method with the lowest cost on one axis, with the evidence for its quality."""
    best, noun, title = weighed.chosen, NOUNS[name], control["title"]
    if best is control:
        text = f"Keep {title}: {_no_saving_reason(record, control, rows, name)}."
    elif (saved := _saved_share(control, best, name)) is not None:
        own, other = (comparable_cost(control, r, name) or 0.0 for r in (best, control))
        text = (
            f"Use {best['title']}: it needs {format_saving(saved)} less {noun} than {title} "
            f"({format_cost(name, own)} against {format_cost(name, other)}) and is "
            f"{_verdict_phrase(record, control, best)}."
        )
    else:
        text = (
            f"Use {best['title']}: no method that is not worse needs less {noun} than {title}, and "
            f"{best['title']} is {_verdict_phrase(record, control, best)}."
        )
    return (
        text
        + _inconclusive_savings(record, control, rows, best, name)
        + _left_out_note(rows, weighed, noun)
    )


def serving_sentence(
    record: StudyRecord, control: Row, rows: Sequence[Row], weighed: WeightedChoice
) -> str:
    """Recommend a method among those that can be served."""
    best, title = weighed.chosen, control["title"]
    if best is not control:
        lacks = "" if can_be_served(record, control) else f"; {_serving_form(record, control)}"
        return (
            f"Use {best['title']}: {_serving_form(record, best)} and is "
            f"{_verdict_phrase(record, control, best)}{lacks}."
        )
    others = [r for r in rows if r["difference"] is not None and can_be_served(record, r)]
    if not can_be_served(record, control):
        form, margin = _serving_form(record, control), format_value(record, record.margin)
        return (
            f"Keep {title}, though {form}: no method that can be served is better or equivalent "
            f"within {margin}."
        )
    none = "no contender that can be served is better by more than chance"
    if not others:
        none = "no contender that can be served has a test score"
    compared = plural(len(others), "such contender")
    return (
        f"Keep {title}: {_serving_form(record, control)}, and {none} ({compared}, "
        f"{_control_score(record, control)})."
    )


def weights_sentence(
    record: StudyRecord,
    control: Row,
    rows: Sequence[Row],
    weighed: WeightedChoice,
    weights: Mapping[str, float],
) -> str:
    """Recommend the method that gains most by the user's weights, with each gain."""
    weight_list = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
    best, title = weighed.chosen, control["title"]
    left_out = _left_out_note(rows, weighed, "everything that has a weight")
    if best is not control:
        return (
            f"Use {best['title']}: by your weights ({weight_list}) it gains "
            f"{_gain_list(record, control, best, weights)} over {title}, and it is "
            f"{_verdict_phrase(record, control, best)}.{left_out}"
        )
    rivals = [r for r in rows if r is not control and weighed.totals.get(r["method"]) is not None]
    if not rivals:
        return f"Keep {title}: {_no_candidate_reason(record, rows)}.{left_out}"
    nearest = max(rivals, key=lambda r: weighed.totals[r["method"]] or 0.0)
    return (
        f"Keep {title}: by your weights ({weight_list}) no contender that is better or equivalent "
        f"gains anything over it (best: {nearest['title']} "
        f"{_gain_list(record, control, nearest, weights)}; {_control_score(record, control)})."
        f"{left_out}"
    )


def _verdict_phrase(record: StudyRecord, control: Row, row: Row) -> str:
    """Describe a contender as better or equivalent, with the evidence."""
    evidence = describe_difference(record, control, row)
    if row["verdict"] == Verdict.BETTER:
        p = format_p_value(row["difference"]["p_adjusted"])
        return f"better ({evidence}, adjusted p {p})"
    return f"equivalent within {format_value(record, record.margin)} ({evidence})"


def _no_saving_reason(record: StudyRecord, control: Row, rows: Sequence[Row], name: str) -> str:
    """Explain why no contender is recommended for a saving."""
    noun, own = NOUNS[name], comparable_cost(control, control, name)
    if own is None:
        return f"its {noun} was not measured, so there is no saving to show"
    running = [r for r in rows if r["difference"] is not None and r["verdict"] in NOT_WORSE]
    if not running:
        return _no_candidate_reason(record, rows)
    return (
        f"no contender that is better or equivalent within "
        f"{format_value(record, record.margin)} needs less {noun} than its "
        f"{format_cost(name, own)} ({plural(len(running), 'such contender')}, "
        f"{_control_score(record, control)})"
    )


def _no_candidate_reason(record: StudyRecord, rows: Sequence[Row]) -> str:
    compared = sum(r["difference"] is not None for r in rows)
    if not compared:
        return "no contender has a test score to compare"
    margin = format_value(record, record.margin)
    none = f"none of the {plural(compared, 'contender')}" if compared > 1 else "no contender"
    return f"{none} is shown to be better or equivalent within {margin}"


def _control_score(record: StudyRecord, control: Row) -> str:
    score = format_value(record, control["score"]["estimate"])
    return f"{control['title']}: {score}, {describe_sample(record, control, control)}"


def _inconclusive_savings(
    record: StudyRecord, control: Row, rows: Sequence[Row], best: Row, name: str
) -> str:
    """List the inconclusive contenders that would save more but are not shown to be equivalent."""
    least = _saved_share(control, best, name) or 0.0
    inconclusive = [
        (saved, r)
        for r in rows
        if r["verdict"] == Verdict.INCONCLUSIVE
        and (saved := _saved_share(control, r, name)) is not None
        and saved > least
    ]
    if not inconclusive:
        return ""
    largest = sorted(inconclusive, key=lambda pair: -pair[0])[:MOST_NAMED]
    listed = "; ".join(
        f"{r['title']} {format_saving(saved)} less, "
        f"{format_difference(record, r['difference']['estimate'])}, "
        f"{format_interval(record, r['difference'])}"
        for saved, r in largest
    )
    return f" Inconclusive, so they might save more at no loss, or might not: {listed}."


def _saved_share(control: Row, row: Row, name: str) -> float | None:
    """Return the share of a cost that a method saves; None if unknown, tied or not a saving."""
    own, other = comparable_cost(control, row, name), comparable_cost(control, control, name)
    if own is None or not other or own >= other or is_cost_tie(own, other):
        return None
    return 1 - own / other


def _left_out_note(rows: Sequence[Row], weighed: WeightedChoice, noun: str) -> str:
    names = [r["title"] for r in rows if r["method"] in weighed.totals
             and weighed.totals[r["method"]] is None]  # fmt: skip
    if not names:
        return ""
    return f" Left out, because no comparable {noun} was measured: {', '.join(names)}."


def _serving_form(record: StudyRecord, row: Row) -> str:
    """Describe how a method can be served."""
    method = row["method"]
    if method not in record.serving:
        return f"how {row['title']} can be served is not known"
    form = record.serving[method]
    return "it " + FORMS[form] if form else f"{row['title']} neither converts to LoRA nor merges"


def _gain_list(record: StudyRecord, control: Row, row: Row, weights: Mapping[str, float]) -> str:
    """Format a method's weighted total gain and its parts."""
    parts = {
        n: w * (gain_over_control(record, control, row, n) or 0.0) for n, w in weights.items() if w
    }
    listed = ", ".join(f"{name} {_signed_gain(part)}" for name, part in parts.items())
    return f"{_signed_gain(sum(parts.values()))} ({listed})"


def _signed_gain(value: float) -> str:
    text = f"{value:+.2f}"
    return "0" if not text.strip("+-0.") else text.replace("-", MINUS)
