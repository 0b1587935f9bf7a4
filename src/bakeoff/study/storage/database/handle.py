"""Common base of reader and writer: a database engine that is closed at the end of a with block."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from bakeoff.study.storage.database import schema


class DatabaseHandle:
    """An open database file."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
        self._engine = schema.create_engine(path, read_only=read_only)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Return the handle itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        self.close()
