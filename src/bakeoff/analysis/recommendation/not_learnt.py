"""The sentence that leads a report whose control has not learnt: no verdict, no recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bakeoff.analysis.evidence import describe_sample, direction_note
from bakeoff.analysis.learning import describe_baseline
from bakeoff.core.format import (
    format_difference,
    format_interval,
    format_learning_rate,
    format_value,
)
from bakeoff.core.record import StudyRecord
from bakeoff.core.warning_codes import list_names

Row = dict[str, Any]


def control_has_learnt(rows: Sequence[Row]) -> bool | None:
    """Return whether the control, the first row, has learnt; None if that is not known."""
    learning = rows[0].get("learning") if rows else None
    return None if learning is None else bool(learning["learnt"])


def may_have_learnt(row: Row) -> bool:
    """Tell whether a method has learnt, or has no baseline that it could be compared with."""
    learning = row.get("learning")
    return learning is None or bool(learning["learnt"])


def not_learnt_sentence(record: StudyRecord, control: Row, rows: Sequence[Row]) -> str:
    """Say that the control has not learnt, by which numbers, and what may be the cause."""
    others = [r for r in rows if r is not control and r.get("learning") is not None]
    learnt = [r for r in others if r["learning"]["learnt"]]
    lead = "Nothing was learnt" if not learnt else "The control has learnt nothing"
    sentences = [f"{lead}: {_evidence(record, control)}."]
    if learnt:
        gains = [f"{r['title']} ({_gain(record, r)})" for r in learnt]
        verb = "has" if len(learnt) == 1 else "have"
        sentences.append(
            f"{list_names(gains)} {verb} learnt, but to be better than a control that has learnt "
            "nothing says little about the methods."
        )
    elif others:
        sentences.append("No contender has surely learnt either.")
    drawn = "equivalent, worse or recommended" if learnt else "better, equivalent or recommended"
    sentences.append(f"So no method is called {drawn}.")
    sentences.append(_advice(record, control))
    return " ".join(sentences)


def _evidence(record: StudyRecord, row: Row) -> str:
    """Describe the control's score, its baseline, and the interval of the difference."""
    learning = row["learning"]
    return (
        f"{row['title']}, the control, scores {format_value(record, row['score']['estimate'])}"
        f"{direction_note(record)}, not surely better than {describe_baseline(learning)}, "
        f"{format_value(record, learning['baseline'])} ({_gain(record, row)}, "
        f"{describe_sample(record, row, row)})"
    )


def _gain(record: StudyRecord, row: Row) -> str:
    gain = row["learning"]["gain"]
    difference = format_difference(record, gain["estimate"])
    return f"{difference}, {format_interval(record, gain)}"


def _advice(record: StudyRecord, control: Row) -> str:
    """Return what to try, by where the chosen learning rate lies among those tried."""
    steps = f"more than {record.steps:,} steps"
    rate = (control["setting"] or {}).get("learning_rate")
    tried = {s["setting"].get("learning_rate") for s in control["settings"]} - {None}
    look = "and look at its answers in the report"
    if rate is None or not tried:
        return f"Try {steps}, {look}."
    shown = format_learning_rate(rate)
    if len(tried) == 1:
        return f"Try learning rates other than {shown}, the only one tried, or {steps}, {look}."
    if rate == max(tried):
        return f"Its learning rate {shown} is the highest tried: try higher ones, {steps}, {look}."
    if rate == min(tried):
        return f"Its learning rate {shown} is the lowest tried: try lower ones, {steps}, {look}."
    return f"Try {steps} or other learning rates, {look}."
