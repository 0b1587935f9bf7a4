"""Load the rows that ``[data]`` names: from files, folders, packaged data or hub data sets.

``datasets`` and pyarrow are imported only for the formats that need them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError
from bakeoff.core.names import expand_home, is_within
from bakeoff.data import assets
from bakeoff.data.assets import ASSET
from bakeoff.data.rows import SUFFIXES, Row, read_rows
from bakeoff.data.sources import hub, parquet
from bakeoff.data.sources.directory import Listing

PARQUET = ".parquet"
KINDS = (*SUFFIXES, PARQUET)
_ID = re.compile(r"[\w.-]+/[\w.-]+")

__all__ = ["KINDS", "LoadedSplit", "load_splits", "locate"]


class LoadedSplit(NamedTuple):
    """The rows of a split, and their origin for the report's provenance."""

    rows: list[Row]
    origin: dict[str, Any]


def load_splits(
    references: Mapping[str, str],
    source: Path,
    config: str | None = None,
    revision: str | None = None,
) -> dict[str, LoadedSplit]:
    """Load the rows of each split in ``references`` (split -> file, folder or data set).

    Paths are relative to ``source``. A train folder whose files are named by split also provides
    validation and test, unless these are given. ``config`` and ``revision`` are for hub data sets.

    Raises:
        PreflightError: a file or data set does not exist, or cannot be read.
        EnvironmentProblem: the hub cannot be reached, a package is missing.
    """
    by_split = dict(references)
    train = locate(references["train"], source)
    if train is not None and train.is_dir():
        provided = Listing.of(train, KINDS).splits
        by_split |= {s: references["train"] for s in provided if s not in by_split}
    return {
        split: _load_split(reference, split, source, config, revision)
        for split, reference in by_split.items()
    }


def locate(reference: str, source: Path) -> Path | None:
    """Return the path of a file or folder; None for a hub data set."""
    if reference.startswith(hub.PREFIX):
        return None
    if reference.startswith(ASSET):
        name, _, file = reference.removeprefix(ASSET).partition("/")
        folder = assets.prepare(name, lambda _: None)
        if not is_within(folder / file, folder):
            cause = f"'{reference}' is outside the asset."
            raise PreflightError("data-not-found", cause, "a file of it (`bakeoff assets`).")
        return folder / file
    return source / expand_home(reference)


def _load_split(
    reference: str, split: str, source: Path, config: str | None, revision: str | None
) -> LoadedSplit:
    path = locate(reference, source)
    if path is None:
        rows, origin = hub.load(hub.Dataset.parse(reference, split, source), config, revision)
        return LoadedSplit(rows, origin)
    if not path.exists() and _ID.fullmatch(reference) and path.suffix not in KINDS:
        raise PreflightError(
            "data-not-found",
            f"There is no file or folder {path}.",
            f'"{hub.PREFIX}{reference}" under [data], if you mean a data set on the hub.',
        )
    files = Listing.of(path, KINDS).of_split(split) if path.is_dir() else [path]
    rows = [row for file in files for row in _read_file(file)]
    return LoadedSplit(rows, {"from": reference, "files": [f.name for f in files]})


def _read_file(path: Path) -> list[Row]:
    if path.suffix == PARQUET and path.is_file():
        return parquet.read_parquet(path)
    if path.is_file() and path.suffix not in KINDS:
        raise PreflightError(
            "data-format",
            f"{path} ends in '{path.suffix}'.",
            f"convert it to one of {', '.join(KINDS)}.",
        )
    return read_rows(path)
