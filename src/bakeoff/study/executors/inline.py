"""Run everything in this process, one after another: breakpoints work, nothing is isolated."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

from bakeoff.core import worker_log
from bakeoff.core.errors import describe_error
from bakeoff.core.jobs import JOB_CACHES, import_function
from bakeoff.study.executors import Options, Outcome


class Inline:
    """Executor for debugging."""

    def __init__(self, workers: int = 1, options: Options = Options()) -> None:  # noqa: B008  # frozen
        self.workers = workers
        self.options = options
        self._log_level = worker_log.configured_level()
        self._caches: Any = None

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Call the function on each payload in turn."""
        call = import_function(function)
        # a function that needs no torch does not load it
        if self._caches is None and "torch" in sys.modules and not self.options.fresh_process:
            self._caches = import_function(JOB_CACHES)()
        waiting = enumerate(payloads)
        while not self.options.should_stop() and (item := next(waiting, None)) is not None:
            index, payload = item
            try:
                with (
                    worker_log.log_to_study(payload, 0, self._log_level),
                    self._caches.use() if self._caches else nullcontext(),
                ):
                    value = call(payload)
            except Exception as error:  # the contract: an outcome, never an exception
                yield Outcome(index, None, describe_error(error))
            else:
                yield Outcome(index, value, None)

    def close(self) -> None:
        """Drop what is kept between payloads."""
        self._caches = None


EXECUTOR = Inline
