"""What fine-tuning gained: every method's test score against that of the untouched base.

Stands beside ``compare`` in analysis: the base's item scores and the methods' in, ``base`` of the
report dict and ``gain`` of its rows out. Two methods can be equivalent because neither learnt a
thing; only this shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Interval, estimate_scores
from bakeoff.core.record import MetricInfo, StudyRecord


def base_row(record: StudyRecord, rng: np.random.Generator) -> dict[str, Any] | None:
    """Return the base's score with a 95 % interval over items; None where it has none.

    It has no seeds: nothing of it is drawn.
    """
    found = _base_scores(record)
    if found is None:
        return None
    metric = record.metric
    known = {"base": Scores((0,), found[None])}
    interval = estimate_scores(known, rng, low=metric.low, high=metric.high)["base"]
    return {"score": asdict(interval), "n_items": len(found)}


def gains_over_base(
    record: StudyRecord, scores: Mapping[str, Scores], rng: np.random.Generator
) -> dict[str, Interval]:
    """Return how far each method's mean score lies above the base's, in the metric's unit.

    Paired by item; 95 % intervals over seeds and items, each for its method alone. Negative where
    the base scores the higher number, whichever is better.
    """
    found = _base_scores(record)
    if found is None:
        return {}
    paired = {
        method: Scores(own.seeds, own.values - found)
        for method, own in scores.items()
        if own.values.shape[1] == len(found)
    }
    return estimate_scores(paired, rng)


def no_gain_warning(title: str, gain: Interval | None, metric: MetricInfo) -> str | None:
    """Warn of a method that cannot be told from the untouched base; None where it can."""
    if gain is None:
        return None
    higher = metric.better == "higher"
    nearest = gain.low if higher else gain.high
    if nearest is not None and (nearest > 0 if higher else nearest < 0):
        return None
    return f"{title} is not surely better than the untouched base: it may have learnt nothing."


def _base_scores(record: StudyRecord) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    if record.base_scores is None or not record.base_scores.scores:
        return None
    return np.array(record.base_scores.scores, dtype=np.float64)
