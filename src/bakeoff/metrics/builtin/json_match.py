"""1 if the prediction parses to the same JSON value as the reference, else 0.

Key order and spacing do not matter; a missing, extra or different value does (whole-value match).
"""

from __future__ import annotations

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._json import canonical_json, parse_json

INFO = MetricInfo("json_match", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)


def score(prediction: str, reference: str) -> float:
    """Return 1.0 if the prediction's JSON value equals the reference's.

    Raises:
        ValueError: the reference is not JSON.
    """
    try:
        expected = canonical_json(parse_json(reference))
    except ValueError as error:
        raise ValueError(f"the reference is not JSON: {error}") from error
    try:
        return float(canonical_json(parse_json(prediction)) == expected)
    except ValueError:
        return 0.0
