"""The Pareto front: the methods that no other beats in both score and cost.

Stands beside ``compare`` in analysis; reads point estimates, so a front says nothing about chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import moocore
import numpy as np


def pareto_front(
    scores: Mapping[str, float | None], costs: Mapping[str, float | None], *, better: str
) -> list[str]:
    """Return the methods on the front over (score, cost), cheapest first.

    A lower cost is better. Ties stay, methods without both values are left out.
    """
    points = []
    for method, score in scores.items():
        cost = costs.get(method)
        if score is not None and cost is not None and math.isfinite(score) and math.isfinite(cost):
            points.append((method, score, cost))
    if not points:
        return []
    values = np.array([(score, cost) for _, score, cost in points], dtype=np.float64)
    keep = moocore.is_nondominated(values, maximise=[better == "higher", False], keep_weakly=True)
    front = [point for point, kept in zip(points, keep, strict=True) if kept]
    return [method for method, _, _ in sorted(front, key=lambda point: point[2])]
