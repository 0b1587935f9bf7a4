"""Rows from Parquet files. Needs pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import DATA_BYTES
from bakeoff.data.rows import FileRows
from bakeoff.data.sources.arrow import (
    MAX_BATCH_ROWS,
    collect,
    import_pyarrow,
    to_rows,
)


def read_parquet(path: Path) -> FileRows:
    """Read every row of a Parquet file, each with its number, from 1, as its place.

    Raises:
        PreflightError: ``data-broken``, ``data-too-large``, ``duplicate-column``.
        EnvironmentProblem: ``data-package-missing``.
    """
    pyarrow = import_pyarrow(path, "Parquet")
    from pyarrow import parquet

    try:
        # not read_table: it adds columns from the folder's name (year=2020)
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(_safe_batch_size(file.metadata))
            table = collect(path, batches, file.schema_arrow, DATA_BYTES)
            uuids = [c.path for c in file.schema if c.logical_type.type == "UUID"]
        return to_rows(table, path.name, uuids)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise PreflightError(
            "data-broken",
            f"{path} cannot be read as Parquet: {error}.",
            "write it again, or convert it to JSONL.",
        ) from error


def _safe_batch_size(metadata: Any) -> int:
    """Return how many rows can be decompressed together within ``DATA_BYTES``.

    A value that many rows share is stored once, so a single row may be as large as its row group.
    """
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    largest = max((int(group.total_byte_size) for group in groups), default=1)
    return max(1, min(MAX_BATCH_ROWS, DATA_BYTES // max(1, largest)))
