"""Rows with their places, and splits as canonical JSONL: written, and read again.

The sha256 of a written split is part of every trial's id. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files
from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import (
    DATA_BYTES,
    DEPTH,
    ROW_CHARACTERS,
    UnreadableFile,
    count_characters,
    exceeds_depth,
    read_bytes,
)
from bakeoff.data.encoding import decode_text
from bakeoff.data.issues import Place, format_numbers

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
_LINE_END = re.compile(r"\r\n|\r|\n")


class LocatedRow(dict[str, Any]):
    """A row with its place in the user's file, which is not part of its content.

    Sampling and splitting keep the place; a written split has only the content.
    """

    __slots__ = ("place",)

    def __init__(self, content: Mapping[str, Any], place: Place) -> None:
        super().__init__(content)
        self.place = place


class FileRows(NamedTuple):
    """The rows of a file or a table, what was assumed about it, and the names of its labels.

    ``labels`` maps a column of numbered labels to their names, in the order of the numbers.
    """

    rows: list[Row]
    notes: tuple[str, ...] = ()
    labels: dict[str, list[str]] = {}

    @property
    def unlabelled_column(self) -> str | None:
        """The column of numbered labels that has none at all, as in a hidden test set."""
        columns = (c for c in self.labels if all(row.get(c) is None for row in self.rows))
        return next(columns, None)


def place_of(row: Row, split: str, position: int) -> Place:
    """Return the place of a row: in the user's file if it was read from one, else in its split."""
    if isinstance(row, LocatedRow):
        return row.place
    return Place(f"the {split} split", "row", position + 1)


def rename_columns(row: Row, names: Mapping[str, str]) -> Row:
    """Return a row with renamed columns and the same place; missing columns are ignored."""
    content = {names.get(name, name): value for name, value in row.items()}
    return LocatedRow(content, row.place) if isinstance(row, LocatedRow) else content


def read_rows(path: Path) -> list[Row]:
    """Read every row of a JSONL file in UTF-8, each with its place: the form of a written split.

    Raises:
        PreflightError: missing file, not UTF-8, byte order marks inside, broken rows, rows too
            large or deep; names all affected lines.
    """
    try:
        raw = read_bytes(path, DATA_BYTES)
    except UnreadableFile as error:
        if error.missing:
            raise PreflightError(
                "data-not-found", f"There is no file {path}.", "check `[data]` in the study file."
            ) from error
        raise PreflightError(
            "data-unreadable", f"{path} cannot be read: {error}.", "`limit`, or smaller files."
        ) from error
    text = decode_text(str(path), raw).text
    rows = parse_jsonl(path.name, text)
    if not rows:
        raise PreflightError("empty-split", f"{path} has no rows.", "give a file with rows.")
    check_row_bounds(path.name, rows, len(text))
    return rows


def parse_jsonl(name: str, text: str) -> list[Row]:
    """Return the rows of a text with an object in each line; ``name`` is the file's, for places.

    Lines count from 1 and end with LF, CR or both; blank ones are skipped.

    Raises:
        PreflightError: ``data-broken``, ``duplicate-column``, naming all affected lines.
    """
    rows: list[Row] = []
    broken: dict[int, str] = {}
    # not str.splitlines: it also breaks on U+2028, which JSON strings may hold
    for number, line in enumerate(_LINE_END.split(text) if "\r" in text else text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            broken[number] = f": {getattr(error, 'msg', error)}"
            continue
        if isinstance(row, dict):
            rows.append(LocatedRow(row, Place(name, "line", number)))
        else:
            broken[number] = " is not an object"
    check_not_broken(name, "line", broken, "every line of a .jsonl file is one JSON object.")
    return rows


def parse_json(text: str) -> Any:
    """Parse JSON; a key that occurs twice in an object is an error, since one would be lost.

    Raises:
        ValueError: it is not JSON, or has a key twice.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' occurs more than once in an object")
    return value


def check_not_broken(name: str, unit: str, broken: Mapping[int, str], try_: str) -> None:
    """Refuse a file with broken rows; name the error of the first and the numbers of the others.

    Raises:
        PreflightError: ``data-broken``.
    """
    if broken:
        first, *others = broken
        more = f"; broken too: {format_numbers(unit, others)}" if others else ""
        raise PreflightError("data-broken", f"{name}: {unit} {first}{broken[first]}{more}.", try_)


def check_unique_columns(subject: str, names: Sequence[str]) -> None:
    """Refuse columns of the same name; ``subject`` begins the sentence: "The header of x.csv has".

    Raises:
        PreflightError: ``duplicate-column``.
    """
    twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
    if twice:
        raise PreflightError(
            "duplicate-column",
            f"{subject} '{twice[0]}' more than once: one would overwrite the other.",
            "give each column a unique name.",
        )


def check_row_bounds(name: str, rows: Sequence[Row], total: int) -> None:
    """Refuse rows that exceed the limits on size and nesting.

    ``total`` is an upper bound of the characters of all rows.

    Raises:
        PreflightError: ``row-too-large``, ``row-too-deep``, naming the rows.
    """
    limits = {
        "row-too-deep": (
            f"nested deeper than {DEPTH} levels",
            [i for i, row in enumerate(rows) if exceeds_depth(row, DEPTH)],
        )
    }
    if total > ROW_CHARACTERS:  # else no single row can be larger
        large = [i for i, row in enumerate(rows) if count_characters(row) > ROW_CHARACTERS]
        limits["row-too-large"] = (f"of more than {ROW_CHARACTERS:,} characters", large)
    for code, (what, positions) in limits.items():
        if positions:
            places = [place_of(rows[i], name, i) for i in positions]
            where = format_numbers(places[0].unit, [p.number for p in places])
            cause = f"{name} has rows {what}: {where}."
            raise PreflightError(code, cause, "shorten or remove them.")


def write_split(path: Path, rows: Iterable[Row]) -> str:
    """Write rows as canonical JSONL and return the file's sha256."""
    text = _to_canonical_jsonl(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write_bytes(path, text)
    return hashlib.sha256(text).hexdigest()


def canonical_digest(rows: Iterable[Row]) -> str:
    """Return the sha256 that ``write_split`` would return."""
    return hashlib.sha256(_to_canonical_jsonl(rows)).hexdigest()


def _to_canonical_jsonl(rows: Iterable[Row]) -> bytes:
    lines = (json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows)
    return "".join(lines).encode()
