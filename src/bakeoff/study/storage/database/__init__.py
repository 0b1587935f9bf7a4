"""The study's database: one writer (the parent process), read-only readers.

SQLite through SQLAlchemy Core, WAL and ``synchronous=FULL``: what was acknowledged survives kill -9
and power loss. Only ``api`` and its phases open it, ``recovery``, which mends it, ``retries`` and
``forks``; workers never do.
"""

from __future__ import annotations

from bakeoff.study.storage.database.reader import ItemResults, Reader, TrialRow, TrialSummary
from bakeoff.study.storage.database.rebuild import rebuild
from bakeoff.study.storage.database.writer import Writer

__all__ = ["ItemResults", "Reader", "TrialRow", "TrialSummary", "Writer", "rebuild"]
