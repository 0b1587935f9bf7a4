"""Read the user's rows, split them and freeze them into the study folder.

Stands at the start of the way of the data: files in, lists of rows out; then one JSONL file a split
under ``<study>/data``, whose sha256 is part of every trial's identity. Standard library only.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeoff.errors import PreflightError, near_match

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_COLUMN = re.compile(r"\{(\w+)\}")


def read_rows(path: Path) -> list[Row]:
    """Read every row of a JSONL, JSON (list of objects), CSV or TSV file.

    Raises:
        PreflightError: missing file, unknown suffix, not UTF-8, broken row (with its number).
    """
    if not path.is_file():
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
    if path.suffix == ".jsonl":
        rows = _jsonl(path, text)
    elif path.suffix == ".json":
        rows = _json(path, text)
    else:
        rows = _csv(path, text)
    if not rows:
        raise PreflightError("empty-split", f"{path} holds no rows.", "give a file with rows.")
    return rows


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PreflightError(
            "data-not-utf8",
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}.",
            f"`iconv -f latin1 -t utf-8 {path.name} > fixed{path.suffix}`, if it is Latin-1.",
        ) from error


def _jsonl(path: Path, text: str) -> list[Row]:
    rows = []
    # split on "\n" alone: str.splitlines also breaks on U+2028, which JSON strings may hold
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(path, f"line {number}: {error.msg}") from error
            if not isinstance(row, dict):
                raise _broken(path, f"line {number} is not an object")
            rows.append(row)
    return rows


def _json(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(path, f"line {error.lineno}: {error.msg}") from error
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise _broken(path, "the file is not a list of objects")
    return rows


def _csv(path: Path, text: str) -> list[Row]:
    # newline="": a quoted cell may hold line ends, and the csv module finds the real ones
    file = io.StringIO(text, newline="")
    reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    rows: list[Row] = []
    for row in reader:
        if None in row:
            raise _broken(path, f"line {reader.line_num} has more cells than the header")
        rows.append(dict(row))
    return rows


def _broken(path: Path, why: str) -> PreflightError:
    return PreflightError(
        "data-broken", f"{path}: {why}.", "one JSON object a line (.jsonl) or a list (.json)."
    )


def split_rows(
    rows: Sequence[Row], group: str | None, fractions: Mapping[str, float], rng: random.Random
) -> dict[str, list[Row]]:
    """Cut ``rows`` into splits; rows that share the ``group`` column stay together.

    The order inside a split is the order of the file. Every split gets at least one group.
    """
    keys = [str(r.get(group)) if group else str(i) for i, r in enumerate(rows)]
    groups = sorted(set(keys))
    rng.shuffle(groups)
    home: dict[str, str] = {}
    start = 0.0
    for split, fraction in fractions.items():
        stop = start + fraction
        for name in groups[round(start * len(groups)) : round(stop * len(groups))]:
            home[name] = split
        start = stop
    return {s: [r for r, k in zip(rows, keys, strict=True) if home.get(k) == s] for s in fractions}


def sample(rows: list[Row], limit: int | None, rng: random.Random) -> list[Row]:
    """Return at most ``limit`` rows, drawn at random, in the order of the file."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), limit))]


def columns_of(template: str) -> tuple[str, ...]:
    """Return the columns a field draws on: ``{name}`` marks in it, else the field itself."""
    return tuple(_COLUMN.findall(template)) or (template,)


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Fill ``{column}`` marks from ``row``; without a mark the template names a column.

    Only plain column names are replaced (no attribute access, no format codes).
    """
    if not _COLUMN.search(template):
        return str(row[template])
    return _COLUMN.sub(lambda m: str(row[m.group(1)]), template)


def check_columns(split: str, rows: Sequence[Row], fields: Mapping[str, str]) -> None:
    """Refuse rows that lack a column which a field draws on, or hold nothing in it.

    Raises:
        PreflightError: ``column-missing`` with the near match, ``empty-value`` with the row.
    """
    for field, template in fields.items():
        for column in columns_of(template):
            for number, row in enumerate(rows, 1):
                if column not in row:
                    near = near_match(column, row)
                    hint = f"did you mean '{near}'? " if near else ""
                    raise PreflightError(
                        "column-missing",
                        f"The {split} split has no column '{column}' in row {number} "
                        f"(the task's '{field}').",
                        f"{hint}The row has: {', '.join(map(str, row))}. "
                        f"Set it under [data.columns].",
                    )
                if row[column] is None or not str(row[column]).strip():
                    raise PreflightError(
                        "empty-value",
                        f"Row {number} of the {split} split has an empty '{column}'.",
                        "remove the row or fill it.",
                    )


def write_split(path: Path, rows: Iterable[Row]) -> str:
    """Write rows as canonical JSONL and return the file's sha256."""
    text = _canonical(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def canonical_digest(rows: Iterable[Row]) -> str:
    """Return the sha256 that ``write_split`` would give."""
    return hashlib.sha256(_canonical(rows)).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(rows: Iterable[Row]) -> bytes:
    lines = (json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in rows)
    return "".join(lines).encode()
