"""1 where the answer parses to the same JSON value as the reference, else 0.

Key order and spacing do not count; a missing, extra or different value does (whole-object match).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from bakeoff.results import MetricInfo

INFO = MetricInfo("json_match", better="higher", unit="fraction", low=0.0, high=1.0)


def _canonical(text: str) -> str | None:
    try:
        # dumped again, because Python holds True equal to 1 and JSON does not
        return json.dumps(json.loads(text), sort_keys=True)
    except (json.JSONDecodeError, RecursionError):
        return None


def score(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return 1.0 for each answer whose JSON value equals its reference's."""
    return [
        float((value := _canonical(p)) is not None and value == _canonical(r))
        for p, r in zip(predictions, references, strict=True)
    ]
