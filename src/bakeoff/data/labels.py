"""Labels of a classification: one form for equal values, and the order that a file gives them.

A column that one program wrote as ``1`` and another as ``1.0``, or as ``true`` and ``True``, would
otherwise have two labels for one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bakeoff.data.rows import LocatedRow, Row

_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")
"""A whole number, perhaps with a fraction of 0. Other texts of digits may be codes or versions."""
_BOOLEANS = {"true", "false"}


def unify_labels(
    splits: Mapping[str, Sequence[Row]], column: str
) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """Return the rows with one form for each label that has several, and a note on each of them.

    A whole number gets its shortest form, a boolean its most frequent one.
    """
    forms: dict[int | str, Counter[str]] = {}
    values: dict[str, Any] = {}
    for row in (row for rows in splits.values() for row in rows):
        if (key := _key(row.get(column))) is not None:
            text = str(row[column])
            forms.setdefault(key, Counter())[text] += 1
            values.setdefault(text, row[column])
    changed: dict[str, str] = {}
    notes = []
    for key, texts in forms.items():
        if len(texts) < 2:
            continue
        chosen = str(key) if isinstance(key, int) else texts.most_common(1)[0][0]
        values.setdefault(chosen, key)
        changed |= {text: chosen for text in texts if text != chosen}
        notes.append(f"'{column}': {', '.join(texts)} are one label, {chosen}.")
    if not changed:
        return {name: list(rows) for name, rows in splits.items()}, ()

    def unify(row: Row) -> Row:
        chosen = changed.get(str(row.get(column)))
        if chosen is None or _key(row.get(column)) is None:
            return row
        content = {**row, column: values[chosen]}
        return LocatedRow(content, row.place) if isinstance(row, LocatedRow) else content

    return {name: [unify(row) for row in rows] for name, rows in splits.items()}, tuple(notes)


def _key(value: Any) -> int | str | None:
    """Return what is equal for all forms of a whole number or a boolean; None for other values."""
    text = str(value)
    if isinstance(value, bool) or (isinstance(value, str) and text.lower() in _BOOLEANS):
        return text.lower()
    if isinstance(value, int | float | str) and _WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    return None


def sort_labels(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the labels in the order of ``names``, unless one of them is not there."""
    order = {name: number for number, name in enumerate(names)}
    known = all(label in order for label in labels)
    return sorted(labels, key=order.__getitem__) if known else list(labels)
