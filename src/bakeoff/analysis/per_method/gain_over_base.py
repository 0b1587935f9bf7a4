"""Gain of fine-tuning: every method's test score against that of the base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Interval, estimate_scores
from bakeoff.analysis.trial_runs import item_groups
from bakeoff.core.record import StudyRecord


def base_row(record: StudyRecord, rng: np.random.Generator) -> dict[str, Any] | None:
    """Return the base model's score with a 95 % interval over items; None if not measured."""
    base_scores = _base_scores(record)
    if base_scores is None:
        return None
    metric = record.metric
    # one row of scores: the base model has no seeds
    known = {"base": Scores((0,), base_scores[None], item_groups(record, len(base_scores)))}
    interval = estimate_scores(known, rng, low=metric.low, high=metric.high)["base"]
    return {"score": asdict(interval), "n_items": len(base_scores)}


def gains_over_base(
    record: StudyRecord, scores: Mapping[str, Scores], rng: np.random.Generator
) -> dict[str, Interval]:
    """Return how far each method's mean score lies above the base's, in the metric's unit.

    Paired by item, with 95 % intervals over seeds and items that are not simultaneous over methods.
    Negative where the base model has the higher score, even if lower is better.
    """
    base_scores = _base_scores(record)
    if base_scores is None:
        return {}
    paired = {
        method: Scores(score.seeds, score.values - base_scores, score.groups)
        for method, score in scores.items()
        if score.values.shape[1] == len(base_scores)
    }
    return estimate_scores(paired, rng)


def _base_scores(record: StudyRecord) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    if record.base_scores is None or not record.base_scores.scores:
        return None
    return np.array(record.base_scores.scores, dtype=np.float64)
