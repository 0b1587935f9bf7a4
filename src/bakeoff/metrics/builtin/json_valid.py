"""1 where the answer is JSON and nothing else, else 0; the reference does not count."""

from __future__ import annotations

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import parse_json

INFO = MetricInfo("json_valid", better="higher", unit="fraction", low=0.0, high=1.0)


def score(prediction: str, reference: str) -> float:
    """Return 1.0 where the answer parses as JSON."""
    try:
        parse_json(prediction)
    except ValueError:
        return 0.0
    return 1.0
