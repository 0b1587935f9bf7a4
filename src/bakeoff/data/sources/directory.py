"""A folder of data files: all of one format, in the order of their names, perhaps named by split.

Subfolders and files with other suffixes are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from bakeoff.core.errors import PreflightError

_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
# the start of a file name: train.jsonl, train-00000-of-00002.parquet, dev_set.csv
_SPLIT = re.compile(rf"({'|'.join(_NAMES)})(?![a-z])", re.IGNORECASE)


class Listing(NamedTuple):
    """The data files of a folder, by split if their names say so."""

    folder: Path
    files: list[Path]
    splits: dict[str, list[Path]]

    @classmethod
    def of(cls, folder: Path, kinds: Sequence[str]) -> Self:
        """List a folder.

        Raises:
            PreflightError: ``data-not-found``, ``folder-mixed``, ``folder-unclear``.
        """
        files = sorted(
            p for p in folder.iterdir()
            if p.is_file() and p.suffix in kinds and not p.name.startswith(".")
        )  # fmt: skip
        if not files:
            raise PreflightError(
                "data-not-found",
                f"{folder} has no file that ends in one of {', '.join(kinds)}.",
                "check `[data]` in the study file; subfolders are not searched.",
            )
        by_kind = {p.suffix: p.name for p in reversed(files)}
        if len(by_kind) > 1:
            raise PreflightError(
                "folder-mixed",
                f"{folder} has files of several formats: {', '.join(by_kind.values())}.",
                "one format per folder, or name the file to use.",
            )
        split_names = [_split_of(p) for p in files]
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
        return cls(folder, files, splits)

    def of_split(self, split: str) -> list[Path]:
        """Return the files of a split; all files if none is named by split.

        Raises:
            PreflightError: ``data-not-found``.
        """
        if not self.splits:
            return self.files
        if split not in self.splits:
            names = ", ".join(p.name for p in self.files[:5])
            raise PreflightError(
                "data-not-found",
                f"{self.folder} names its files by split and has none for {split}: {names}.",
                f"add {split}{self.files[0].suffix}, or name a file.",
            )
        return self.splits[split]


def _split_of(path: Path) -> str | None:
    match = _SPLIT.match(path.name)
    return _NAMES[match[1].lower()] if match else None
