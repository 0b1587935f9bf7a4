"""Run a metric over predictions: a score for each item, or an error that names the item."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bakeoff.core.clock import TimeLimitExceeded, time_limit
from bakeoff.core.errors import PreflightError, describe_error
from bakeoff.core.record import MetricInfo

ITEM_SECONDS = 10.0
"""Default of ``timeout``: far more than any built-in metric takes for one prediction."""
_SHOWN = 80


class MetricError(PreflightError):
    """A metric failed on an item, or did not return a valid score."""


@dataclass(frozen=True)
class Metric:
    """A metric ready to score: its function and the values of its options.

    ``of_losses``: it is computed from an item's loss, without a prediction. ``timeout`` is the time
    that one item may take, in seconds.
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
        return [self._score_item(pair, f"item {i} of {split}") for i, pair in enumerate(pairs, 1)]

    def score_losses(
        self, sums: Iterable[float], counts: Iterable[float], split: str
    ) -> list[float]:
        """Return each item's score from its summed loss and its number of supervised units.

        Raises:
            MetricError: ``metric-result`` where a loss is not finite.
        """
        pairs = zip(map(float, sums), map(float, counts), strict=True)
        return [self._score_item(pair, f"item {i} of {split}") for i, pair in enumerate(pairs, 1)]

    def _score_item(self, pair: tuple[Any, Any], where: str) -> float:
        """Return the score of a (prediction, reference) or (loss, units) pair."""
        started = time.monotonic()
        try:
            with time_limit(self.timeout):
                value = self.function(*pair, **self.options)
        except TimeLimitExceeded:
            raise self._slow_error(where) from None
        except Exception as error:  # any input, perhaps the user's code: it can raise anything
            raise MetricError(
                "metric-failed",
                f"The metric '{self.info.name}' failed on {where} (answer {_abbreviate(pair[0])}, "
                f"reference {_abbreviate(pair[1])}): {describe_error(error)}.",
                "correct that row or the metric, and start the study in a new folder.",
            ) from error
        if time.monotonic() - started > self.timeout:  # if no alarm could interrupt it
            raise self._slow_error(where)
        if not isinstance(value, numbers.Real) or not self._in_range(float(value)):
            raise self._invalid_score_error(value, where)
        return float(value)

    def _in_range(self, value: float) -> bool:
        low, high = self.info.low, self.info.high
        above = low is None or value >= low
        return math.isfinite(value) and above and (high is None or value <= high)

    def _slow_error(self, where: str) -> MetricError:
        return MetricError(
            "metric-slow",
            f"The metric '{self.info.name}' took more than {self.timeout:g} s on {where}.",
            "use a faster metric, or raise `timeout` (seconds) under [task.metric_options].",
        )

    def _invalid_score_error(self, value: Any, where: str) -> MetricError:
        low, high = self.info.low, self.info.high
        least = "" if low is None else f", {low:g} or more"
        most = "" if high is None else f", {high:g} or less"
        return MetricError(
            "metric-result",
            f"The metric '{self.info.name}' returned {_abbreviate(value)} for {where}.",
            f"it must return one finite number{least}{most}.",
        )


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
