"""A folder of data files: all of one format, in the order of their names, perhaps named by split.

The files may lie in a subfolder ``data``, or in subfolders named by split, as the folders of
``save_to_disk``. Files of other formats, and JSON files that describe the data, are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, read_json
from bakeoff.data.sources.compression import is_compressed
from bakeoff.data.sources.files import KINDS, kind_of

_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
# the start of a file name: train.jsonl, train-00000-of-00002.parquet, dev_set.csv
_SPLIT = re.compile(rf"({'|'.join(_NAMES)})(?![a-z])", re.IGNORECASE)
_STATE = "state.json"
"""File of ``save_to_disk`` that lists the data files."""
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", _STATE}
"""What ``datasets`` writes beside the data."""
_DATA_FOLDER = "data"


class Listing(NamedTuple):
    """The data files of a folder, by split if their names say so, and what is not read."""

    folder: Path
    files: list[Path]
    splits: dict[str, list[Path]]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """List a folder.

        Raises:
            PreflightError: ``data-not-found``, ``folder-mixed``, ``folder-unclear``.
        """
        files, notes = _data_files(folder)
        inner = {} if files else _data_subfolders(folder)
        if files:
            splits = _by_split(folder, files)
            notes += _unread(folder, _data_subfolders(folder))
        elif any(split_of(name) == "train" for name in inner):
            splits, notes = _split_folders(folder, inner)
            files = [file for part in splits.values() for file in part]
        elif _DATA_FOLDER in inner or len(inner) == 1:
            name = _DATA_FOLDER if _DATA_FOLDER in inner else next(iter(inner))
            listing = cls.of(folder / name)
            return listing._replace(notes=(*_unread(folder, {*inner} - {name}), *listing.notes))
        elif inner:
            raise PreflightError(
                "folder-unclear",
                f"{folder} has no data files, and several subfolders with some: "
                f"{', '.join(inner)}.",
                "name one of them.",
            )
        else:
            raise PreflightError(
                "data-not-found",
                f"{folder} has no file that ends in one of {', '.join(KINDS)}.",
                "check `[data]` in the study file.",
            )
        _check_one_format(folder, files)
        return cls(folder, files, splits, notes)

    def of_split(self, split: str) -> list[Path]:
        """Return the files of a split; all files if none is named by split.

        Raises:
            PreflightError: ``data-not-found``.
        """
        if not self.splits:
            return self.files
        if split not in self.splits:
            names = ", ".join(self.name_of(p) for p in self.files[:5])
            raise PreflightError(
                "data-not-found",
                f"{self.folder} names its files by split and has none for {split}: {names}.",
                f"add {split}{self.files[0].suffix}, or name a file.",
            )
        return self.splits[split]

    def name_of(self, file: Path) -> str:
        """Return a file's name, with its subfolder if it is in one."""
        return file.relative_to(self.folder).as_posix()


def split_of(name: str) -> str | None:
    """Return the split that the name of a file, a folder or a split of ``datasets`` means."""
    match = _SPLIT.match(name)
    return _NAMES[match[1].lower()] if match else None


def _data_files(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the data files in a folder itself, and notes on those that are not read."""
    files = sorted(
        p for p in folder.iterdir()
        if p.is_file() and kind_of(p) and not p.name.startswith(".")
        and p.name not in _DESCRIPTIONS
    )  # fmt: skip
    files = [p for p in files if kind_of(p) != ".arrow" or p.name not in _cached_tables(folder)]
    names = {p.name for p in files}
    copies = [p for p in files if is_compressed(p) and p.stem in names]
    files = [p for p in files if p not in copies]
    if any(kind_of(p) != ".zip" for p in files):  # an archive of something else
        files = [p for p in files if kind_of(p) != ".zip"]
    about = [p for p in files if kind_of(p) == ".json" and not split_of(p.name)]
    about = [p for p in about if len(files) > 1 and not _may_hold_rows(p)]
    notes = []
    if copies:
        notes.append(f"{folder.name}: not read beside its decompressed copy: {_names(copies)}.")
    if about:
        notes.append(f"{folder.name}: not read, since it holds no rows: {_names(about)}.")
    return [p for p in files if p not in about], tuple(notes)


def _may_hold_rows(path: Path) -> bool:
    """Tell whether a JSON file can hold rows: it is large, broken, a list or an object with one."""
    try:
        value: Any = read_json(path, CONFIG_BYTES)
    except UnreadableFile:
        return True
    values = list(value.values()) if isinstance(value, dict) else [value]
    return any(
        isinstance(inner, list) and bool(inner) and isinstance(inner[0], dict) for inner in values
    )


def _data_subfolders(folder: Path) -> dict[str, list[Path]]:
    """Return the own files of each subfolder that has data files, if only in its subfolders."""
    found = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files, _ = _data_files(path)
        deeper = (inner for inner in path.iterdir() if inner.is_dir())
        if files or any(_data_files(inner)[0] for inner in deeper):
            found[path.name] = files
    return found


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each split, if their names say it.

    Raises:
        PreflightError: ``folder-unclear``.
    """
    split_names = [split_of(p.name) for p in files]
    splits: dict[str, list[Path]] = {}
    for path, split in zip(files, split_names, strict=True):
        if split is not None:
            splits.setdefault(split, []).append(path)
    if splits and None in split_names:
        unnamed = files[split_names.index(None)].name
        named = next(iter(splits.values()))[0].name
        raise PreflightError(
            "folder-unclear",
            f"In {folder}, {named} is named by its split and {unnamed} is not.",
            f"name every file by its split ({', '.join(_NAMES)}), or none.",
        )
    return splits


def _split_folders(
    folder: Path, inner: dict[str, list[Path]]
) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return the files of subfolders that are named by split, and a note on the others.

    Raises:
        PreflightError: ``folder-unclear``: two of them are the same split, or one has subfolders.
    """
    named = {name: split for name in inner if (split := split_of(name)) is not None}
    if len(set(named.values())) < len(named) or not all(inner[name] for name in named):
        raise PreflightError(
            "folder-unclear",
            f"{folder} has the subfolders {', '.join(inner)}, whose splits are not clear.",
            f'name them one by one: train = "{folder.name}/{next(iter(named))}".',
        )
    splits = {split: inner[name] for name, split in named.items()}
    return splits, _unread(folder, {*inner} - named.keys())


def _unread(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return a note on subfolders with data that are not read."""
    unread = sorted(names)
    return (f"{folder.name} has subfolders that are not read: {', '.join(unread)}.",) * bool(unread)


def _cached_tables(folder: Path) -> set[str]:
    """Return the Arrow files in a folder of ``save_to_disk`` that are only caches of ``datasets``.

    Raises:
        PreflightError: ``data-not-found``, ``data-format``.
    """
    try:
        state: Any = read_json(folder / _STATE, CONFIG_BYTES)
        saved = {str(file["filename"]) for file in state["_data_files"]}
    except (UnreadableFile, KeyError, TypeError):
        return set()
    tables = {p.name for p in folder.glob("*.arrow")}
    if missing := sorted(saved - tables):
        raise PreflightError(
            "data-not-found",
            f"{folder} has no file {missing[0]}, which its {_STATE} names.",
            "save or copy the data set again.",
        )
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise PreflightError(
            "data-format",
            f"{folder} was saved as a selection of rows by an old version of `datasets`.",
            "`datasets.load_from_disk(folder).flatten_indices().save_to_disk(new_folder)`.",
        )
    return tables - saved


def _check_one_format(folder: Path, files: Sequence[Path]) -> None:
    """Refuse files of several formats.

    Raises:
        PreflightError: ``folder-mixed``.
    """
    by_kind = {kind_of(p): p.name for p in reversed(files)}
    if len(by_kind) > 1:
        raise PreflightError(
            "folder-mixed",
            f"{folder} has files of several formats: {', '.join(by_kind.values())}.",
            "one format per folder, or name the file to use.",
        )


def _names(files: Sequence[Path]) -> str:
    return ", ".join(p.name for p in files)
