"""The item's loss per supervised unit (token of the completion, label), in nats; lower is better.

No answer is generated for it, so it costs no more than a validation reading.
"""

from __future__ import annotations

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("loss", better="lower", unit="nats", low=0.0)


def score_loss(total: float, units: float) -> float:
    """Return the mean loss over an item's supervised units."""
    return total / units
