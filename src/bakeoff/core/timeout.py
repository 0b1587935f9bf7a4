"""A limit on the time that work of strangers may take: metrics, patterns, chat templates.

Stands at the bottom: ``scoring`` and ``chat`` run what came with a study under it. Standard library
only.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator


class TimeLimitExceeded(BaseException):
    """Raised by the alarm; no ``Exception``, so that a metric's own handlers let it pass."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what is inside after so many seconds, where the platform can.

    An alarm reaches Python's main thread alone; whoever else had one set gets it back.

    Raises:
        TooSlow: it was interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise TimeLimitExceeded

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(
                signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), every
            )
