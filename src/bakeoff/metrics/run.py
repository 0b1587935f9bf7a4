"""Run a metric over answers, one at a time: a score for each, or an error that names the item.

Used by ``evaluate`` on a model's answers, and by ``preflight`` on the references themselves, so
that what cannot be scored is found before anything is trained.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.core.record import MetricInfo
from bakeoff.core.timeout import TimeLimitExceeded, time_limit

ITEM_SECONDS = 10.0
"""Default of ``timeout``: far more than any metric here takes for one answer."""
_SHOWN = 80


class MetricError(PreflightError):
    """A metric failed on an item, or gave what is no score."""


@dataclass(frozen=True)
class Metric:
    """A metric ready to score: its function and the values of its options.

    ``of_losses``: it is made from an item's loss, and no answer is predicted for it. ``timeout`` is
    the seconds that one item may take.
    """

    info: MetricInfo
    function: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    timeout: float = ITEM_SECONDS
    of_losses: bool = False

    def score(
        self, predictions: Sequence[str], references: Sequence[str], split: str
    ) -> list[float]:
        """Return each item's score.

        Raises:
            MetricError: ``metric-failed``, ``metric-slow`` or ``metric-result``, naming the item.
        """
        pairs = zip(predictions, references, strict=True)
        return [self._one(pair, f"item {i} of {split}") for i, pair in enumerate(pairs, 1)]

    def score_losses(
        self, sums: Iterable[float], counts: Iterable[float], split: str
    ) -> list[float]:
        """Return each item's score from its summed loss and how many supervised units it has.

        Raises:
            MetricError: ``metric-result`` where a loss is not finite.
        """
        pairs = zip(map(float, sums), map(float, counts), strict=True)
        return [self._one(pair, f"item {i} of {split}") for i, pair in enumerate(pairs, 1)]

    def _one(self, pair: tuple[Any, Any], where: str) -> float:
        started = time.monotonic()
        try:
            with time_limit(self.timeout):
                value = self.function(*pair, **self.options)
        except TimeLimitExceeded:
            raise self._slow(where) from None
        except Exception as error:  # a model's answer, perhaps in the user's code: it can be any
            raise MetricError(
                "metric-failed",
                f"The metric '{self.info.name}' failed on {where} (answer {_abbreviate(pair[0])}, "
                f"reference {_abbreviate(pair[1])}): {type(error).__name__}: {error}.",
                "mend that row or the metric; the study goes on in a new folder.",
            ) from error
        if time.monotonic() - started > self.timeout:  # where no alarm could interrupt it
            raise self._slow(where)
        if not isinstance(value, numbers.Real) or not self._in_range(float(value)):
            raise self._no_score(value, where)
        return float(value)

    def _in_range(self, value: float) -> bool:
        low, high = self.info.low, self.info.high
        above = low is None or value >= low
        return math.isfinite(value) and above and (high is None or value <= high)

    def _slow(self, where: str) -> MetricError:
        return MetricError(
            "metric-slow",
            f"The metric '{self.info.name}' took more than {self.timeout:g} s on {where}.",
            "a faster one, or more `timeout` (seconds) under [task.metric_options].",
        )

    def _no_score(self, value: Any, where: str) -> MetricError:
        low, high = self.info.low, self.info.high
        least = "" if low is None else f", {low:g} or more"
        most = "" if high is None else f", {high:g} or less"
        return MetricError(
            "metric-result",
            f"The metric '{self.info.name}' gave {_abbreviate(value)} for {where}.",
            f"let it return one finite number{least}{most}.",
        )


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
