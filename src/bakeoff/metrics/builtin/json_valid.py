"""1 if the prediction is JSON and nothing else, else 0; the reference is ignored."""

from __future__ import annotations

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._json import parse_json

INFO = MetricInfo("json_valid", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)


def score(prediction: str, reference: str) -> float:
    """Return 1.0 if the prediction parses as JSON."""
    try:
        parse_json(prediction)
    except ValueError:
        return 0.0
    return 1.0
