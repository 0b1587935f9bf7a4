"""Signals between a running job and whoever supervises it: work proceeds, stop at a safe point.

A worker process installs its listener with ``listen``; without one, nothing is reported and no stop
is ever requested.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

from bakeoff.core.context import set_in_block


class Listener(Protocol):
    """Receives the signs of life of a job."""

    def beat(self) -> None:
        """Note that work has proceeded."""
        ...

    def stop_requested(self) -> bool:
        """Return whether the job should stop at the next safe point."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listen(listener: Listener) -> AbstractContextManager[Listener]:
    """Report to ``listener`` in the block."""
    return set_in_block(_listener, listener)


def beat() -> None:
    """Report that work has proceeded; called wherever work of bounded length is done."""
    listener = _listener.get()
    if listener is not None:
        listener.beat()


def stop_requested() -> bool:
    """Return whether the job should stop at the next safe point."""
    listener = _listener.get()
    return listener is not None and listener.stop_requested()
