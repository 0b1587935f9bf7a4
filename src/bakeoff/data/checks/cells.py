"""Checks of single cells: missing columns, empty cells, other types than text, odd characters.

Only columns that the task uses are checked, except for what prevents a row from being written.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bakeoff.core.errors import near_match
from bakeoff.data.checks.context import CheckContext
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import LocatedRow, Row
from bakeoff.data.templates import (
    cell_of,
    columns_of,
    escape_text,
    escaped_names,
    has_cell,
    names_in,
)

VERY_LONG, TIMES_THE_MEDIAN = 10_000, 50
"""A row is very long with more characters than that, and than so many median rows."""
NULL_WORDS = {"nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A"}
"""Text that pandas and spreadsheets write for a missing value."""
DELIMITERS = ",;\t|"
_DELIMITED = re.compile(r"\.(csv|tsv|tab)\b", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 and C1 except tab and line ends; U+FFFD, which decoders write for lost bytes; byte order marks
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufeff]")


def check(split: str, rows: Sequence[Row], context: CheckContext) -> list[DataIssue]:
    """Return the issues of the cells of one split."""
    issues = [*_bom_in_names(split, rows), *_lone_surrogates(split, rows)]
    for field, template in context.fields.items():
        for column in columns_of(template):
            issues += _check_column(split, rows, field, column, template, context)
        issues += _escaped_columns(split, rows, field, template)
    if any(f.fatal for f in issues):
        return issues
    first = next(iter(context.fields.values()))
    issues += _control_characters(split, rows, context.fields)
    issues += _null_words(split, rows, columns_of(first))
    issues += _very_long_rows(split, rows, context.fields)
    issues += _rows_in_cells(split, rows, context.fields)
    return issues


def _check_column(
    split: str, rows: Sequence[Row], field: str, column: str, template: str, context: CheckContext
) -> Iterator[DataIssue]:
    use, optional = f"the task's '{field}'", field in context.optional
    yield from find_missing_values(split, rows, use, column, template, optional)
    if field in context.structured:
        return
    cells = [(i, cell_of(row, column)) for i, row in enumerate(rows) if has_cell(row, column)]
    nested = [i for i, value in cells if isinstance(value, dict | list)]
    if nested:
        yield DataIssue.at(
            "not-text",
            f"'{column}' is a list or an object, not text,",
            _text_inside(column, cell_of(rows[nested[0]], column)),
            split, nested, len(rows), fatal=True,
        )  # fmt: skip
    filled = [(i, value) for i, value in cells if not _is_empty(value)]
    yield from _mixed_types(split, column, filled, len(rows))


def _text_inside(column: str, value: Any) -> str:
    """Return the hint for a list or an object where text is needed."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    first = next((part for part, inner in parts if isinstance(inner, str)), None)
    if first is None:
        return "put the text into its own column."
    return f"name the text inside it: `{{{column}.{first}}}`."


def find_missing_values(
    split: str,
    rows: Sequence[Row],
    use: str,
    column: str,
    template: str | None = None,
    optional: bool = False,
) -> list[DataIssue]:
    """Return issues for rows that lack a column (with the closest match) or are empty in it.

    ``template`` is the text that names the column, if it is a template. One of its columns may be
    empty where another is not. An ``optional`` column may always be empty.
    """
    issues = []
    lacking = [i for i, row in enumerate(rows) if not has_cell(row, column)]
    if lacking:
        names = [str(name) for name in rows[lacking[0]]]
        near = near_match(column.strip(), names_in(rows[lacking[0]]))
        hint = f"did you mean '{near}'? " if near else ""
        escaped = (
            ""
            if template in (None, column)
            else (f" Braces that are text are doubled: `{escape_text(template, column)}`.")
        )
        issues.append(
            DataIssue.at(
                "column-missing",
                f"No column '{column}' ({use})",
                f"{hint}The row has: {', '.join(names)}. Set it in [data].{escaped}",
                split,
                lacking,
                len(rows),
                fatal=True,
            )  # fmt: skip
        )
    return issues if optional else [*issues, *_empty_cells(split, rows, column, template)]


def _empty_cells(
    split: str, rows: Sequence[Row], column: str, template: str | None
) -> Iterator[DataIssue]:
    empty = [i for i, row in enumerate(rows) if _is_empty_in(row, column)]
    others = [name for name in columns_of(template) if name != column] if template else []
    partly = [i for i in empty if not all(_is_empty_in(rows[i], name) for name in others)]
    if partly:
        yield DataIssue.at(
            "empty-part",
            f"'{column}' is empty, and the rest of its template is used,",
            "fill them, if the template reads wrong without it.",
            split, partly, len(rows),
        )  # fmt: skip
    if fatal := sorted(set(empty) - set(partly)):
        yield DataIssue.at(
            "empty-value",
            f"'{column}' is empty",
            "remove these rows or fill them.",
            split, fatal, len(rows), fatal=True,
        )  # fmt: skip


def _is_empty_in(row: Row, column: str) -> bool:
    return has_cell(row, column) and _is_empty(cell_of(row, column))


def _escaped_columns(
    split: str, rows: Sequence[Row], field: str, template: str
) -> Iterator[DataIssue]:
    for name in escaped_names(template):
        found = [i for i, row in enumerate(rows) if has_cell(row, name.strip())]
        if found:
            yield DataIssue.at(
                "column-escaped",
                f"`{{{{{name}}}}}` in the task's '{field}' is the text `{{{name}}}`, though there "
                f"is a column '{name.strip()}',",
                f"`{{{name.strip()}}}` stands for the column.",
                split, found, len(rows),
            )  # fmt: skip


def _is_empty(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return not value if isinstance(value, dict | list) else not str(value).strip()


def _mixed_types(
    split: str, column: str, cells: Sequence[tuple[int, Any]], of: int
) -> Iterator[DataIssue]:
    kinds: dict[str, list[int]] = {}
    for i, value in cells:
        kinds.setdefault(_type_name(value), []).append(i)
    if len(kinds) > 1:
        usual = max(kinds, key=lambda k: len(kinds[k]))
        unusual = sorted(i for kind, at in kinds.items() if kind != usual for i in at)
        others = " or ".join(sorted(k for k in kinds if k != usual))
        yield DataIssue.at(
            "mixed-types",
            f"'{column}' is {others} where the other rows have {usual}",
            "every value is read as text, so 1, 1.0 and true differ; use one form.",
            split, unusual, of,
        )  # fmt: skip


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    return "a decimal number" if isinstance(value, float) else "text"


def _bom_in_names(split: str, rows: Sequence[Row]) -> Iterator[DataIssue]:
    marked = [i for i, row in enumerate(rows) if any("\ufeff" in str(name) for name in row)]
    if marked:
        yield DataIssue.at(
            "data-bom",
            "A column's name contains a byte order mark",
            "rename the column; the mark is invisible, and no other name matches it.",
            split, marked, len(rows), fatal=True,
        )  # fmt: skip


def _lone_surrogates(split: str, rows: Sequence[Row]) -> Iterator[DataIssue]:
    found = [
        i for i, row in enumerate(rows) if _SURROGATE.search(json.dumps(row, ensure_ascii=False))
    ]
    if found:
        yield DataIssue.at(
            "lone-surrogate",
            "A lone surrogate (half of a UTF-16 pair), which is not a character,",
            "the text was cut inside an emoji or similar; repair or remove these rows.",
            split, found, len(rows), fatal=True,
        )  # fmt: skip


def _field_texts(row: Row, fields: Mapping[str, str]) -> Iterator[str]:
    for template in fields.values():
        for column in columns_of(template):
            value = cell_of(row, column)
            yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _control_characters(
    split: str, rows: Sequence[Row], fields: Mapping[str, str]
) -> Iterator[DataIssue]:
    found: dict[int, str] = {}
    for i, row in enumerate(rows):
        hit = next(
            filter(None, (_CONTROL.search(text) for text in _field_texts(row, fields))), None
        )
        if hit:
            found[i] = hit.group()
    if found:
        kinds = sorted({f"U+{ord(c):04X}" for c in found.values()})
        yield DataIssue.at(
            "control-characters",
            f"Control or replacement characters ({', '.join(kinds[:3])})",
            "U+FFFD marks bytes that a decoder lost, the others are invisible; clean these "
            "rows if they are not intended.",
            split, list(found), len(rows),
        )  # fmt: skip


def _null_words(split: str, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[DataIssue]:
    for column in columns:
        found = [i for i, row in enumerate(rows) if str(cell_of(row, column)).strip() in NULL_WORDS]
        if found:
            seen = str(cell_of(rows[found[0]], column)).strip()
            yield DataIssue.at(
                "null-as-text",
                f"'{column}' is the word '{seen}', which tools write for missing values,",
                "remove these rows if the value is missing.",
                split, found, len(rows),
            )  # fmt: skip


def _very_long_rows(
    split: str, rows: Sequence[Row], fields: Mapping[str, str]
) -> Iterator[DataIssue]:
    lengths = [sum(map(len, _field_texts(row, fields))) for row in rows]
    least = max(VERY_LONG, TIMES_THE_MEDIAN * statistics.median(lengths)) if lengths else 0
    found = [i for i, length in enumerate(lengths) if length > least]
    if found:
        yield DataIssue.at(
            "very-long-row",
            f"Over {TIMES_THE_MEDIAN} times as long as the median row (up to "
            f"{max(lengths):,} characters)",
            "check whether a line end or a quote is missing there.",
            split, found, len(rows),
        )  # fmt: skip


def _rows_in_cells(
    split: str, rows: Sequence[Row], fields: Mapping[str, str]
) -> Iterator[DataIssue]:
    """List cells of CSV and TSV files whose lines have as many delimiters as a row of the file."""

    def holds_rows(row: Row, text: str) -> bool:
        inner = text.splitlines()[1:-1]
        return (
            len(inner) > 1
            and len(row) > 1
            and any(
                all(line.count(delimiter) == len(row) - 1 for line in inner)
                for delimiter in DELIMITERS
            )
        )

    found = [
        i
        for i, row in enumerate(rows)
        if isinstance(row, LocatedRow)
        and _DELIMITED.search(row.place.file)
        and any(holds_rows(row, text) for text in _field_texts(row, fields))
    ]
    if found:
        yield DataIssue.at(
            "cell-with-rows",
            "A quoted cell has lines with as many delimiters as a row of the file",
            "look for a stray quote, which would make rows a part of this text.",
            split, found, len(rows),
        )  # fmt: skip
