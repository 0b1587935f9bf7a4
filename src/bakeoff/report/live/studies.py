"""The studies that the view shows, under opaque ids that reveal no path.

Input from a browser is only ever looked up as an id, never used in a path.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from bakeoff.core.errors import UsageError
from bakeoff.report.live.study_feed import StudyFeed
from bakeoff.study.storage.study_dir import DATABASE

MAX_DEPTH = 2
"""Maximum depth of a study below a given folder."""


class Studies:
    """The studies in some folders, searched again on every listing."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Create the collection from study folders, or folders of studies.

        Raises:
            UsageError: ``no-study`` for a folder that does not exist.
        """
        for root in roots:
            if not root.is_dir():
                raise UsageError(
                    "no-study",
                    f"The folder {root} does not exist.",
                    "a study folder, a folder of studies, or `bakeoff demo` to create one.",
                )
        self._roots = tuple(roots)
        self._feeds: dict[str, StudyFeed] = {}
        self._lock = threading.Lock()

    def all(self) -> list[StudyFeed]:
        """Return the current studies, in the order of their folders."""
        paths = dict.fromkeys(path for root in self._roots for path in _study_folders(root))
        with self._lock:
            for path in paths:
                name = study_id(path)
                if name not in self._feeds:
                    self._feeds[name] = StudyFeed(path, name)
            return [self._feeds[study_id(path)] for path in paths]

    def get(self, name: str) -> StudyFeed:
        """Return the study with an id.

        Raises:
            UsageError: ``no-study``.
        """
        for feed in [self._feeds[name]] if name in self._feeds else self.all():
            if feed.id == name:
                return feed
        raise UsageError("no-study", "There is no such study.", "the list of studies at /.")


def study_id(folder: Path) -> str:
    """Return the id of a study folder; it is stable across runs of the view."""
    return hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _study_folders(root: Path) -> list[Path]:
    root = root.resolve()
    if (root / DATABASE).is_file():
        return [root]
    return sorted(
        path.parent
        for level in range(1, MAX_DEPTH + 1)
        for path in root.glob("*/" * level + DATABASE)
        if path.is_file()
    )
