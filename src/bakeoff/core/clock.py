"""The current time as text, keys of wall times, and time limits."""

from __future__ import annotations

import contextlib
import datetime
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

_PREFIX = "wall:"


def now_utc(timespec: str = "seconds") -> str:
    """Return the current time in UTC as ISO 8601, such as ``2026-11-30T07:06:56+00:00``."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec)


def new_wall_key() -> str:
    """Return a new key for the seconds of one run."""
    return f"{_PREFIX}{uuid.uuid4().hex}"


def is_wall_key(key: str) -> bool:
    """Tell whether a key of the study's values holds the seconds of a run."""
    return key.startswith(_PREFIX)


def wall_times(values: Mapping[str, Any]) -> list[float]:
    """Return the wall time of each run so far, in seconds, from the study's values."""
    return [float(v) for k, v in values.items() if is_wall_key(k)]


class TimeLimitExceeded(BaseException):
    """Raised at the limit; not an ``Exception``, so that handlers in a metric do not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds, if the platform supports it.

    Signals reach only Python's main thread: in other threads there is no limit. An alarm that was
    set before is restored.

    Raises:
        TimeLimitExceeded: the block was interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(*_: object) -> None:
        raise TimeLimitExceeded

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, interrupt)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            signal.setitimer(
                signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 1e-3), interval
            )
