"""The pulse of a worker: training says that it goes on, and hears that it should stop.

``executors.process`` gives its workers a ``Pulse`` that its watchdog reads; elsewhere nothing
listens. Beaten by ``loop``, ``evaluate`` and ``decoding`` wherever work of bounded length is done.
"""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Who listens to a worker."""

    def beat(self) -> None:
        """Note that work went on."""
        ...

    def stop_requested(self) -> bool:
        """Say whether the work should end at the next safe point."""
        ...


class Pulse:
    """This process's listener, None where there is none."""

    listener: Listener | None = None


def beat() -> None:
    """Say that work goes on."""
    if Pulse.listener is not None:
        Pulse.listener.beat()


def stop_requested() -> bool:
    """Say whether the work should end at the next safe point."""
    return Pulse.listener is not None and Pulse.listener.stop_requested()
