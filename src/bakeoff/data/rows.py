"""Read rows from the user's files, and write a split as canonical JSONL.

The sha256 of a written split is part of every trial's id. Standard library only.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from bakeoff.data.issues import Place, format_numbers

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_COLUMN = re.compile(r"\{(\w+)\}")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BOM = "\ufeff"
_CELL_LIMIT = 2**31 - 1
"""Limit for the characters of a CSV cell; Python's default of 131,072 refuses long documents."""


class LocatedRow(dict[str, Any]):
    """A row with its place in the user's file, which is not part of its content.

    Sampling and splitting keep the place; a written split has only the content.
    """

    __slots__ = ("place",)

    def __init__(self, content: Mapping[str, Any], place: Place) -> None:
        super().__init__(content)
        self.place = place


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
    """Read every row of a JSONL, JSON (list of objects), CSV or TSV file, each with its place.

    Lines and rows count from 1; the place of a CSV row that spans lines is its first line. A byte
    order mark at the start of the file is ignored.

    Raises:
        PreflightError: missing file, unknown suffix, not UTF-8, byte order marks inside, a header
            with a duplicate name, broken rows, rows too large or deep; names all affected lines.
    """
    if not path.exists():
        raise PreflightError(
            "data-not-found", f"There is no file {path}.", "check `[data]` in the study file."
        )
    if path.suffix not in SUFFIXES:
        raise PreflightError(
            "data-format",
            f"{path} ends in '{path.suffix}'.",
            f"convert it to one of {', '.join(SUFFIXES)}.",
        )
    text = _decode(path)
    rows = _parse(path, text)
    if not rows:
        raise PreflightError("empty-split", f"{path} has no rows.", "give a file with rows.")
    check_row_bounds(path.name, rows, len(text))
    return rows


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


def _parse(path: Path, text: str) -> list[Row]:
    if path.suffix == ".jsonl":
        return _parse_jsonl(path, text)
    return _parse_json(path, text) if path.suffix == ".json" else _parse_csv(path, text)


def _decode(path: Path) -> str:
    try:
        raw = read_bytes(path, DATA_BYTES)
    except UnreadableFile as error:
        raise PreflightError(
            "data-unreadable", f"{path} cannot be read: {error}.", "`limit`, or smaller files."
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8_error(path, raw, error.start) from error
    if _BOM in text:
        lines = [n for n, line in enumerate(text.split("\n"), 1) if line.startswith(_BOM)]
        if path.suffix in (".csv", ".tsv") and _BOM in text.partition("\n")[0]:
            lines = list(dict.fromkeys([1, *lines]))  # in a column's name, at any position
        if lines:
            raise PreflightError(
                "data-bom",
                f"{path} has a byte order mark inside, in {format_numbers('line', lines)}: "
                "files that start with one were concatenated, or a header was inserted.",
                f"`sed -i 's/\\xef\\xbb\\xbf//g' {path.name}` removes all of them.",
            )
    return text


def _not_utf8_error(path: Path, raw: bytes, first: int) -> PreflightError:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        cause, encoding = f"{path} is UTF-16, not UTF-8.", "utf-16"
    else:
        lines = [n for n, line in enumerate(raw.split(b"\n"), 1) if not _is_utf8(line)]
        cause = f"{path} is not UTF-8: byte 0x{raw[first]:02x} in {format_numbers('line', lines)}."
        encoding = "latin1"
    fixed = f"fixed{path.suffix}"
    return PreflightError(
        "data-not-utf8",
        cause,
        f"`iconv -f {encoding} -t utf-8 {path.name} > {fixed}`"
        + ("." if encoding == "utf-16" else ", if it is Latin-1."),
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse_jsonl(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    broken: dict[int, str] = {}
    # split on "\n" only: str.splitlines also breaks on U+2028, which JSON strings may hold
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            broken[number] = f": {getattr(error, 'msg', error)}"
            continue
        if isinstance(row, dict):
            rows.append(LocatedRow(row, Place(path.name, "line", number)))
        else:
            broken[number] = " is not an object"
    _check_not_broken(path, "line", broken)
    return rows


def _parse_json(path: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise _broken_file_error(path, f"line {line}: {getattr(error, 'msg', error)}") from error
    if not isinstance(values, list):
        raise _broken_file_error(path, "the file is not a list of objects")
    numbered_values = list(enumerate(values, 1))
    wrong = {n: " is not an object" for n, v in numbered_values if not isinstance(v, dict)}
    _check_not_broken(path, "row", wrong)
    return [LocatedRow(v, Place(path.name, "row", n)) for n, v in numbered_values]


def _parse_csv(path: Path, text: str) -> list[Row]:
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        return _parse_csv_rows(path, text)
    except csv.Error as error:
        raise _broken_file_error(path, f"{error}") from error
    finally:
        csv.field_size_limit(before)


def _parse_csv_rows(path: Path, text: str) -> list[Row]:
    # newline="": a quoted cell may hold line ends, and the csv module finds the real ones
    file = io.StringIO(text, newline="")
    reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    names = list(reader.fieldnames or ())
    twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
    if twice:
        raise PreflightError(
            "duplicate-column",
            f"The header of {path} has '{twice[0]}' more than once: one would overwrite the other.",
            "give each column a unique name.",
        )
    rows: list[Row] = []
    wrong: dict[int, str] = {}
    for row in reader:
        inside = sum(len(_LINE_END.findall(cell)) for cell in row.values() if isinstance(cell, str))
        begins = reader.line_num - inside
        if None in row:
            wrong[begins] = " has more cells than the header"
        rows.append(LocatedRow(row, Place(path.name, "line", begins)))
    _check_not_broken(path, "line", wrong)
    return rows


def _check_not_broken(path: Path, unit: str, broken: Mapping[int, str]) -> None:
    """Refuse a file with broken rows; name the error of the first and the numbers of the others."""
    if broken:
        first, *others = broken
        raise _broken_file_error(
            path,
            f"{unit} {first}{broken[first]}"
            + (f"; broken too: {format_numbers(unit, others)}" if others else ""),
        )


def _broken_file_error(path: Path, why: str) -> PreflightError:
    return PreflightError(
        "data-broken", f"{path}: {why}.", "one JSON object a line (.jsonl) or a list (.json)."
    )


def columns_of(template: str) -> tuple[str, ...]:
    """Return the columns that a template uses: its ``{name}`` marks, else the template itself."""
    return tuple(_COLUMN.findall(template)) or (template,)


def render_template(template: str, row: Mapping[str, Any]) -> str:
    """Fill ``{column}`` marks from ``row``; a template without marks is a column's name.

    Only plain column names are replaced (no attribute access, no format codes).
    """
    if not _COLUMN.search(template):
        return str(row[template])
    return _COLUMN.sub(lambda m: str(row[m.group(1)]), template)


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
