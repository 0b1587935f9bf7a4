"""The current time as text."""

from __future__ import annotations

import datetime


def now_utc(timespec: str = "seconds") -> str:
    """Return the current time in UTC as ISO 8601, such as ``2026-11-30T07:06:56+00:00``."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec)
