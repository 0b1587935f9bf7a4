"""The recommendation of a study of replicates that prefers quality, in words for any reader.

The evidence of each contender is not in the sentences: the report lists it right below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.evidence import direction_note
from bakeoff.core.format import format_interval, format_value, plural
from bakeoff.core.record import StudyRecord

Row = dict[str, Any]


def better_sentence(record: StudyRecord, control: Row, best: Row, n_better: int) -> str:
    """Recommend the best of the ``n_better`` contenders that are better than the control."""
    difference, higher = best["difference"], record.metric.better == "higher"
    gain = format_value(record, abs(difference["estimate"]))
    least = difference["low"] if higher else -difference["high"]
    text = (
        f"Use {best['title']}: it is better than {control['title']} by {gain}"
        f"{direction_note(record)} ({format_interval(record, difference)})."
    )
    if least < record.margin:
        margin = format_value(record, record.margin)
        text += f" The true difference may be less than {margin}, your margin."
    if n_better > 1:
        others = plural(n_better - 1, "other contender is", "other contenders are")
        text += f" {others} better than {control['title']}, too."
    return text


def keep_sentence(record: StudyRecord, control: Row, compared: Sequence[Row]) -> str:
    """Recommend the control, with the number of contenders by verdict."""
    keep = f"Keep {control['title']}"
    if not compared:
        return f"{keep}: no contender has a test score to compare."
    verdicts = [row["verdict"] for row in compared]
    counts = {v: verdicts.count(v) for v in Verdict}
    n = len(compared)
    if counts[Verdict.INCONCLUSIVE] == n:
        what = "the contender is" if n == 1 else f"none of the {n} contenders is"
        negation = "not " if n == 1 else ""
        return f"{keep} for now: {what} {negation}shown to be better, equivalent or worse."
    margin = format_value(record, record.margin)
    parts = [
        f"{counts[verdict]} {'is' if counts[verdict] == 1 else 'are'} {word}"
        for verdict, word in (
            (Verdict.EQUIVALENT, f"equivalent (less than {margin} apart)"),
            (Verdict.WORSE, "worse"),
            (Verdict.INCONCLUSIVE, "not settled"),
        )
        if counts[verdict]
    ]
    if n == 1:
        return f"{keep}: the contender {parts[0].split(' ', 1)[1]}."
    if len(parts) == 1:
        return f"{keep}: all {n} contenders {parts[0].split(' ', 1)[1]}."
    return f"{keep}: none of the {n} contenders is better. {_join(parts)}."


def _join(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
