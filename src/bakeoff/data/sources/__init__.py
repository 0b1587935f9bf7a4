"""Load the rows that ``[data]`` names: from files, folders, packaged data or hub data sets.

``datasets`` and pyarrow are imported only for the formats that need them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError
from bakeoff.core.names import expand_home, is_within
from bakeoff.data import assets
from bakeoff.data.assets import ASSET
from bakeoff.data.rows import FileRows, Row
from bakeoff.data.sources import hub
from bakeoff.data.sources.directory import Listing
from bakeoff.data.sources.files import KINDS, kind_of, read_data_file

_ID = re.compile(r"[\w.-]+/[\w.-]+")

__all__ = ["KINDS", "LoadedSplit", "load_splits", "locate"]


class LoadedSplit(NamedTuple):
    """The rows of a split, and their origin for the report's provenance.

    ``origin`` has, where there are any, ``notes``: what was guessed or left out, in a line each;
    and ``labels``: column -> names of its labels, in the order of their numbers.
    """

    rows: list[Row]
    origin: dict[str, Any]


def load_splits(
    references: Mapping[str, str],
    source: Path,
    config: str | None = None,
    revision: str | None = None,
    encoding: str | None = None,
) -> dict[str, LoadedSplit]:
    """Load the rows of each split in ``references`` (split -> file, folder or data set).

    Paths are relative to ``source``. A train folder whose files are named by split, or a hub data
    set without a named split, also provides validation and test, unless these are given.
    ``config`` and ``revision`` are for hub data sets, ``encoding`` for text files.

    Raises:
        PreflightError: a file or data set does not exist, or cannot be read.
        EnvironmentProblem: the hub cannot be reached, a package is missing.
    """
    reference = references["train"]
    train = locate(reference, source)
    if train is None:
        provided = hub.load_train(reference, source, config, revision, references.keys())
        loaded = {split: _with_origin(*read) for split, read in provided.items()}
    elif train.is_dir():
        loaded = _load_folder(Listing.of(train), reference, encoding, references.keys())
    else:
        loaded = {"train": _load_split(reference, "train", source, config, revision, encoding)}
    loaded |= {
        split: _load_split(own, split, source, config, revision, encoding)
        for split, own in references.items()
        if split != "train"
    }
    return loaded


def _load_folder(
    listing: Listing, reference: str, encoding: str | None, given: Collection[str]
) -> dict[str, LoadedSplit]:
    """Read train and, if the files are named by split, the splits that are not ``given``."""
    loaded = {"train": _read_files(listing, listing.of_split("train"), reference, encoding)}
    notes, used = [], []
    for split in (s for s in listing.splits if s not in given):
        part = _read_files(listing, listing.of_split(split), reference, encoding)
        labels = part.origin.get("labels", {})
        if (column := FileRows(part.rows, (), labels).unlabelled_column) is not None:
            notes.append(f"{reference}: its {split} has no labels in '{column}': it is not used.")
            continue
        loaded[split] = part
        used.append(split)
    if used:
        notes.append(f"{reference} also provides {' and '.join(used)}, by the names of its files.")
    return {**loaded, "train": _with_notes(loaded["train"], notes)}


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
    reference: str,
    split: str,
    source: Path,
    config: str | None,
    revision: str | None,
    encoding: str | None,
) -> LoadedSplit:
    path = locate(reference, source)
    if path is None:
        return _with_origin(
            *hub.load(hub.Dataset.parse(reference, split, source), config, revision)
        )
    if path.is_dir():
        listing = Listing.of(path)
        return _read_files(listing, listing.of_split(split), reference, encoding)
    if not path.exists() and _ID.fullmatch(reference) and kind_of(path) is None:
        raise PreflightError(
            "data-not-found",
            f"There is no file or folder {path}.",
            f'"{hub.PREFIX}{reference}" under [data], if you mean a data set on the hub.',
        )
    read = read_data_file(path, encoding)
    return _with_origin(read, {"from": reference, "files": [path.name]})


def _read_files(
    listing: Listing, files: Iterable[Path], reference: str, encoding: str | None
) -> LoadedSplit:
    """Read files of a folder as one split.

    Raises:
        PreflightError: ``labels-differ``, and what a file's reader refuses.
    """
    names = [listing.name_of(path) for path in files]
    rows: list[Row] = []
    notes: dict[str, None] = dict.fromkeys(listing.notes)
    labels: dict[str, dict[str, list[str]]] = {}
    for path in files:
        read = read_data_file(path, encoding)
        rows += read.rows
        notes |= dict.fromkeys(read.notes)
        labels[path.name] = read.labels
    first = next(iter(labels))
    for name, own in labels.items():
        if own != labels[first]:
            raise PreflightError(
                "labels-differ",
                f"{first} and {name} name their labels differently.",
                "write them with the same features, or with the names in place of the numbers.",
            )
    whole = FileRows(rows, tuple(notes), labels[first])
    return _with_origin(whole, {"from": reference, "files": names})


def _with_origin(read: FileRows, origin: dict[str, Any]) -> LoadedSplit:
    labels = {"labels": read.labels} if read.labels else {}
    return _with_notes(LoadedSplit(read.rows, {**origin, **labels}), read.notes)


def _with_notes(loaded: LoadedSplit, notes: Iterable[str]) -> LoadedSplit:
    """Return the split with further notes in its origin."""
    all_notes = [*loaded.origin.get("notes", []), *notes]
    return loaded._replace(origin={**loaded.origin, "notes": all_notes}) if all_notes else loaded
