"""Find a study's rows: in files, folders of files, packaged data, or data sets of a hub.

Stands between what a study file names under ``[data]`` and ``folder``, which cuts and freezes the
rows found here. ``datasets`` and pyarrow are imported only where a study names what they read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError
from bakeoff.core.names import is_within
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
    """The rows of a split, and where they came from, for the report's provenance."""

    rows: list[Row]
    origin: dict[str, Any]


def load_splits(
    given: Mapping[str, str], source: Path, config: str | None = None, revision: str | None = None
) -> dict[str, LoadedSplit]:
    """Read the rows of each split that ``given`` names, and those that a folder brings along.

    Paths are relative to ``source``. A folder given as train whose files are named by split brings
    its validation and test files too, unless others are given. ``config`` and ``revision`` are
    those of data sets of a hub.

    Raises:
        PreflightError: what is named is not there, or cannot be read.
        EnvironmentProblem: the hub cannot be reached, a package is missing.
    """
    named = dict(given)
    train = locate(given["train"], source)
    if train is not None and train.is_dir():
        brought = Listing.of(train, KINDS).splits
        named |= {s: given["train"] for s in brought if s not in named}
    return {
        split: _load_split(reference, split, source, config, revision)
        for split, reference in named.items()
    }


def locate(reference: str, source: Path) -> Path | None:
    """Return where a file or folder lies; None for a data set of a hub."""
    if reference.startswith(hub.PREFIX):
        return None
    if reference.startswith(ASSET):
        name, _, file = reference.removeprefix(ASSET).partition("/")
        folder = assets.prepare(name, lambda _: None)
        if not is_within(folder / file, folder):
            cause = f"'{reference}' leads out of the asset."
            raise PreflightError("data-not-found", cause, "a file of it (`bakeoff assets`).")
        return folder / file
    return source / Path(reference).expanduser()


def _load_split(
    reference: str, split: str, source: Path, config: str | None, revision: str | None
) -> LoadedSplit:
    path = locate(reference, source)
    if path is None:
        rows, origin = hub.load(hub.Dataset.named(reference, split, source), config, revision)
        return LoadedSplit(rows, origin)
    if not path.exists() and _ID.fullmatch(reference) and path.suffix not in KINDS:
        raise PreflightError(
            "data-not-found",
            f"There is no file or folder {path}.",
            f'"{hub.PREFIX}{reference}" under [data], if a data set of the hub is meant.',
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
