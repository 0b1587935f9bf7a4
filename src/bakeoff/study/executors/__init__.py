"""Executors run jobs in this process, in worker processes or on a cluster; one file each.

A module has a class ``EXECUTOR``, constructed with a number of workers and ``Options``. The
contract of ``map(function, payloads)``: it yields one ``Outcome`` for each payload, in any order,
as soon as it is known, and takes a payload only when its work can start. ``function`` is a
top-level function named ``module:name``, from JSON values to JSON values. An executor never raises
for errors inside the work: a dead worker is an ``Outcome`` with an error. It never opens the
database. An executor that may work on other machines has ``remote = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Outcome:
    """Result of payload number ``index``: a value, or the error."""

    index: int
    value: dict[str, Any] | None
    error: str | None
    detail: str | None = None
    """Diagnostics of a failure: a traceback, or the end of a dead worker's stderr."""
    gpu: str | None = None
    """The GPU that the executor assigned to the work, if any."""
    gpu_lost: bool = False
    """Whether the error made the GPU unusable for the process."""


def never() -> bool:
    """Return False: the default of ``Options.should_stop``."""
    return False


@dataclass(frozen=True)
class Options:
    """Settings for running payloads; an executor ignores options that it does not support.

    ``fresh_process`` gives each payload its own process, for measurements of time and memory.
    ``stall_timeout`` is the number of seconds without progress after which work counts as hung.
    ``one_gpu_each`` assigns the machine's GPUs to workers in turn. Once ``should_stop`` returns
    True, no payload is taken any more, and running work is asked to end at its next safe point.
    ``engine`` is the study's `[engine]`, for keys of a single executor.
    """

    fresh_process: bool = False
    stall_timeout: float = 1800.0
    one_gpu_each: bool = False
    should_stop: Callable[[], bool] = never
    engine: Mapping[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """Runner of a function over payloads."""

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield an outcome for each payload as it ends."""
        ...

    def close(self) -> None:
        """Release everything that is kept for further payloads."""
        ...


@runtime_checkable
class CanExcludeGpu(Protocol):
    """An executor that can exclude one of its GPUs."""

    def exclude_gpu(self, gpu: str) -> None:
        """Assign no more work to that GPU, a value of ``Outcome.gpu``."""
