"""Ctrl-C, SIGTERM, SIGHUP: the first asks a study to stop where nothing is lost, the second stops.

Used by ``api.run``; executors ask the ``Stop`` whether it is time. A job system's SIGTERM leaves
some seconds before it kills: enough to keep the states of the trials at hand. SIGHUP is a terminal
that went away; where it is ignored (``nohup``) it stays so.
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
    """Whether the user, or the job system, wants the study to stop.

    ``say`` is told once, by whoever asks first: a signal handler may not print.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.signal: int | None = None
        self._say = say
        self._said = False

    def __call__(self) -> bool:
        """Say whether to stop."""
        if self.signal is not None and not self._said:
            self._said = True
            self._say("stopping at the next safe point; once more stops at once")
        return self.signal is not None

    def check(self) -> None:
        """Stop here, if so wished.

        Raises:
            Interrupted, Terminated: ``interrupted``.
        """
        if self():
            kind = Interrupted if self.signal == signal.SIGINT else Terminated
            raise kind(
                "interrupted",
                "The study was stopped; what was done is kept.",
                "the same command once more: it goes on where it stopped.",
            )

    def _heard(self, number: int, _: object) -> None:
        if self.signal is None:
            self.signal = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(Terminated.exit_code)


@contextlib.contextmanager
def handle_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Give a ``Stop`` that hears the signals; in other threads than the main one it hears none."""
    stop = StopRequest(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [*SIGNALS]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {s: signal.signal(s, stop._heard) for s in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
