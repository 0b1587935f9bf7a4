"""Read one file of rows in any format, compressed or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import DATA_BYTES
from bakeoff.data.encoding import decode_text
from bakeoff.data.rows import FileRows, Row, check_row_bounds
from bakeoff.data.sources import arrow, parquet
from bakeoff.data.sources.compression import (
    format_suffix,
    is_compressed,
    read_file,
    unknown_format,
)
from bakeoff.data.sources.delimited import parse_delimited
from bakeoff.data.sources.json_file import parse_json_file, parse_json_lines

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""The formats that are read, by their usual suffixes."""
_OTHER_NAMES = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".tab": ".tsv", ".pq": ".parquet"}
_BINARY = (".parquet", ".arrow")


def kind_of(path: Path) -> str | None:
    """Return the format of a file by its name, as one of ``KINDS``; None if it is not read.

    A .zip file without another suffix is ``.zip``.
    """
    suffix = format_suffix(path)
    kind = _OTHER_NAMES.get(suffix, suffix)
    if kind in KINDS:
        return kind
    return ".zip" if path.suffix.lower() == ".zip" and not kind else None


def read_data_file(path: Path, encoding: str | None = None) -> FileRows:
    """Read every row of a file, each with its place. Lines and rows count from 1.

    ``encoding`` is that of a text file without a byte order mark, None for UTF-8.

    Raises:
        PreflightError: missing file, unknown format, wrong encoding, broken rows, rows too large
            or deep; names all affected lines.
        EnvironmentProblem: ``data-package-missing``.
    """
    kind = kind_of(path)
    if not path.exists():
        raise PreflightError(
            "data-not-found", f"There is no file {path}.", "check `[data]` in the study file."
        )
    if kind is None:
        raise unknown_format(path, KINDS)
    if kind in _BINARY:
        if is_compressed(path):
            raise PreflightError(
                "data-format",
                f"{path} is a compressed {kind} file.",
                f"decompress it: {kind} files are compressed inside.",
            )
        read = parquet.read_parquet if kind == ".parquet" else arrow.read_arrow
        table = read(path)
        check_not_empty(path, table.rows)
        return table
    return _read_text_file(path, encoding)


def _read_text_file(path: Path, encoding: str | None) -> FileRows:
    content = read_file(path, DATA_BYTES)
    kind = _OTHER_NAMES.get(content.suffix, content.suffix)
    if kind not in KINDS or kind in _BINARY:
        raise PreflightError(
            "data-format",
            f"{path} holds a file that ends in '{content.suffix}'.",
            "unpack it." if kind in _BINARY else f"one of {', '.join(KINDS)} in it.",
        )
    text, notes = decode_text(str(path), content.raw, encoding, tabular=kind in (".csv", ".tsv"))
    if kind == ".jsonl":
        rows, more = parse_json_lines(path.name, text)
    elif kind == ".json":
        rows, more = parse_json_file(path.name, text)
    else:
        rows, more = parse_delimited(path.name, text, tabs=kind == ".tsv")
    check_not_empty(path, rows)
    check_row_bounds(path.name, rows, len(text))
    return FileRows(rows, (*notes, *more))


def check_not_empty(path: Path, rows: Sequence[Row]) -> None:
    """Refuse a file without rows.

    Raises:
        PreflightError: ``empty-split``.
    """
    if not rows:
        raise PreflightError("empty-split", f"{path} has no rows.", "give a file with rows.")
