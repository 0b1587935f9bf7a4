"""Rows from Arrow tables: Parquet files, and data sets of ``datasets``. Needs pyarrow.

Rows are stored as JSON: times become ISO 8601, durations seconds, decimals text. Columns of bytes
(images, audio) are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from bakeoff.core.errors import EnvironmentProblem, PreflightError
from bakeoff.core.safe_read import DATA_BYTES
from bakeoff.data.issues import Place
from bakeoff.data.rows import LocatedRow, Row, check_row_bounds

MAX_BATCH_ROWS = 1024
"""Limit for the rows that are decompressed before their size is checked."""


def read_parquet(path: Path) -> list[Row]:
    """Read every row of a Parquet file, each with its number, from 1, as its place.

    Raises:
        PreflightError: ``data-broken``, ``duplicate-column``, ``empty-split``.
        EnvironmentProblem: ``data-package-missing``.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentProblem(
            "data-package-missing",
            f"{path} is Parquet, and the package pyarrow that reads it is not installed.",
            "`pip install 'bakeoff[parquet]'`, or convert the file to JSONL.",
        ) from error
    try:
        # not read_table: it adds columns from the folder's name (year=2020)
        rows = to_rows(_read_table(path), path.name)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise PreflightError(
            "data-broken",
            f"{path} cannot be read as Parquet: {error}.",
            "write it again, or convert it to JSONL.",
        ) from error
    if not rows:
        raise PreflightError("empty-split", f"{path} has no rows.", "give a file with rows.")
    return rows


def _read_table(path: Path) -> Any:
    """Read a file in batches: a small file can decompress to more than the memory holds.

    Raises:
        PreflightError: ``data-too-large``.
    """
    import pyarrow
    from pyarrow import parquet

    batches, size = [], 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_safe_batch_size(file.metadata)):
            size += batch.nbytes
            if size > DATA_BYTES:
                raise PreflightError(
                    "data-too-large",
                    f"{path} ({path.stat().st_size:,} bytes) unpacks to more than "
                    f"{DATA_BYTES:,} bytes.",
                    "smaller files, or fewer columns.",
                )
            batches.append(batch)
        return pyarrow.Table.from_batches(batches, file.schema_arrow)


def _safe_batch_size(metadata: Any) -> int:
    """Return how many rows can be decompressed together within ``DATA_BYTES``.

    A value that many rows share is stored once, so a single row may be as large as its row group.
    """
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    largest = max((int(group.total_byte_size) for group in groups), default=1)
    return max(1, min(MAX_BATCH_ROWS, DATA_BYTES // max(1, largest)))


def to_rows(table: Any, name: str) -> list[Row]:
    """Return the rows of an Arrow table as JSON values; ``name`` is the file name of their places.

    Raises:
        PreflightError: ``duplicate-column``, and see ``check_row_bounds``.
    """
    names = table.column_names
    twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
    if twice:
        raise PreflightError(
            "duplicate-column",
            f"{name} has the column '{twice[0]}' more than once: one would overwrite the other.",
            "give each column a unique name.",
        )
    kept = table.select([f.name for f in table.schema if not _holds_bytes(f.type)])
    rows: list[Row] = [
        LocatedRow({k: _to_json_value(v) for k, v in row.items()}, Place(name, "row", number))
        for number, row in enumerate(kept.to_pylist(), 1)
    ]
    check_row_bounds(name, rows, kept.nbytes)
    return rows


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields)):
        return True
    types = pyarrow.types
    return any(
        test(kind)
        for test in (
            types.is_binary, types.is_large_binary, types.is_fixed_size_binary,
            types.is_binary_view,
        )
    )  # fmt: skip


def _to_json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _to_json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(v) for v in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal) else value
