"""The study's database: one writer (the parent process) and read-only readers.

SQLite through SQLAlchemy Core, in WAL mode with ``synchronous=FULL``: acknowledged writes survive
kill -9 and power loss. Workers never open it.
"""

from __future__ import annotations

from bakeoff.study.storage.database.reader import ItemResults, Reader, TrialRow, TrialSummary
from bakeoff.study.storage.database.rebuild import rebuild
from bakeoff.study.storage.database.writer import Writer

__all__ = ["ItemResults", "Reader", "TrialRow", "TrialSummary", "Writer", "rebuild"]
