"""The item's loss per supervised unit (token of the completion, label), in nats; lower is better.

It needs no predictions, so it costs no more than a validation loss.
"""

from __future__ import annotations

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("loss", better="lower", unit="nats", low=0.0)
TASKS = ("classify", "sft", "choice")


def score_loss(total: float, units: float) -> float:
    """Return the mean loss over an item's supervised units."""
    return total / units
