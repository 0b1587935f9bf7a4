"""Run everything in this process, one after another: breakpoints work, nothing is isolated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bakeoff.core.jobs import import_function
from bakeoff.study.executors import Options, Outcome


class Inline:
    """The executor for debugging."""

    def __init__(self, workers: int = 1, options: Options = Options()) -> None:  # noqa: B008  # frozen
        self.workers = workers
        self.options = options

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Call the function on each payload in turn."""
        call = import_function(function)
        waiting = enumerate(payloads)
        while not self.options.should_stop() and (taken := next(waiting, None)) is not None:
            index, payload = taken
            try:
                yield Outcome(index, call(payload), None)
            except Exception as error:  # the contract: an outcome, never an exception
                yield Outcome(index, None, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Do nothing: nothing is held."""


EXECUTOR = Inline
