"""Executors: carry work to where it runs. One file each, with an ``EXECUTOR`` class.

Each is made with a number of workers and ``Options``. The contract: ``map(function, payloads)``
yields one ``Outcome`` for each payload, in any order, as soon as it is there; a payload is taken
only when its work can begin. ``function`` is a top-level function named ``module:name``, from JSON
values to JSON values. An executor never raises for what happens inside the work: a dead worker is
an ``Outcome`` with an error. It never opens the database. One that
may work on other machines says ``elsewhere = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Outcome:
    """What became of payload number ``index``: a value, or the reason why there is none."""

    index: int
    value: dict[str, Any] | None
    error: str | None
    detail: str | None = None
    """What was last heard of the work: a traceback, the end of a dead worker's stderr."""
    gpu: str | None = None
    """The one GPU that the work saw, where the executor gave it one."""
    gpu_lost: bool = False
    """Whether its error left the process without it."""


def never() -> bool:
    """Say no."""
    return False


@dataclass(frozen=True)
class Options:
    """How payloads are to be run; an executor leaves alone what it has no use for.

    ``fresh``: a process of its own for each, for readings of time and memory. ``patience``: seconds
    without progress after which work counts as hung. ``spread``: workers take the machine's GPUs in
    turn. From ``stopping`` on no payload is taken any more, and the work at hand is asked to end at
    its next safe point. ``engine``: the study's `[engine]`, for keys that one executor alone knows.
    """

    fresh_process: bool = False
    stall_timeout: float = 1800.0
    one_gpu_each: bool = False
    should_stop: Callable[[], bool] = never
    engine: Mapping[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """Runs a function over payloads."""

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield an outcome for each payload as it ends."""
        ...

    def close(self) -> None:
        """Let go of what is held for further payloads."""
        ...


@runtime_checkable
class CanExcludeGpu(Protocol):
    """An executor that can do without one of its GPUs."""

    def exclude_gpu(self, gpu: str) -> None:
        """Give no more work to that GPU, one of ``Outcome.gpu``."""
