"""A folder of data files: all of one kind, in the order of their names, perhaps named by split.

Part of ``sources``. Only what lies directly in the folder counts, and of that only files with the
suffix of a data file.
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
# what a file's name begins with: train.jsonl, train-00000-of-00002.parquet, dev_set.csv
_SPLIT = re.compile(rf"({'|'.join(_NAMES)})(?![a-z])", re.IGNORECASE)


class Listing(NamedTuple):
    """The data files of a folder, by split where their names say one."""

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
                f"{folder} holds no file that ends in one of {', '.join(kinds)}.",
                "check `[data]` in the study file; folders inside a folder are not looked into.",
            )
        by_kind = {p.suffix: p.name for p in reversed(files)}
        if len(by_kind) > 1:
            raise PreflightError(
                "folder-mixed",
                f"{folder} holds files of several kinds: {', '.join(by_kind.values())}.",
                "one kind a folder, or name the file that is meant.",
            )
        homes = [_split_of(p) for p in files]
        splits: dict[str, list[Path]] = {}
        for path, home in zip(files, homes, strict=True):
            if home is not None:
                splits.setdefault(home, []).append(path)
        if splits and None in homes:
            odd = files[homes.index(None)].name
            named = next(iter(splits.values()))[0].name
            raise PreflightError(
                "folder-unclear",
                f"In {folder}, {named} is named by its split and {odd} is not.",
                f"name every file by its split ({', '.join(_NAMES)}), or none.",
            )
        return cls(folder, files, splits)

    def of_split(self, split: str) -> list[Path]:
        """Return the files of a split: all of them, where no name says one.

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
    found = _SPLIT.match(path.name)
    return _NAMES[found[1].lower()] if found else None
