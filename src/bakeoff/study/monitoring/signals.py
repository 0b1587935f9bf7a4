"""Ctrl-C, SIGTERM and SIGHUP: the first signal stops a study safely, the second stops it at once.

A job system leaves some seconds between SIGTERM and a kill: enough to save the checkpoints of the
trials in progress. SIGHUP comes from a closed terminal; if it is ignored (``nohup``) it stays so.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from bakeoff.core.errors import Interrupted, Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The user's or the job system's request to stop the study; call it to ask for one.

    ``say`` reports the request once, from the first call: a signal handler must not print.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.signal: int | None = None
        self._say = say
        self._reported = False

    def __call__(self) -> bool:
        """Return whether the study should stop."""
        if self.signal is not None and not self._reported:
            self._reported = True
            self._say("stopping at the next checkpoint; press Ctrl-C again to stop immediately")
        return self.signal is not None

    def check(self) -> None:
        """Stop here if requested.

        Raises:
            Interrupted, Terminated: ``interrupted``.
        """
        if self():
            kind = Interrupted if self.signal == signal.SIGINT else Terminated
            raise kind(
                "interrupted",
                "The study was stopped; all results so far are kept.",
                "run the same command again to resume.",
            )

    def handle(self, number: int, _: object) -> None:
        """Handle a signal: note the first one, stop the process at the second."""
        if self.signal is None:
            self.signal = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(Terminated.exit_code)


@contextlib.contextmanager
def handle_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Yield a ``StopRequest`` that receives the signals.

    Only the main thread can receive signals; elsewhere no stop is ever requested.
    """
    stop = StopRequest(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = [*SIGNALS]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before = {s: signal.signal(s, stop.handle) for s in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
