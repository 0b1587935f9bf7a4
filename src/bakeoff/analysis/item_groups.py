"""Groups of test items in the report: their number, and how much they widen the intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.group_variance import design_effect
from bakeoff.core.record import StudyRecord


def groups_section(record: StudyRecord, scores: Mapping[str, Scores]) -> dict[str, Any] | None:
    """Return the source and number of the groups and their design effect; None without groups.

    The design effect is how many times the variance of independent items that of the groups is, in
    the mean over the differences to the control; None before there are any.
    """
    if record.groups is None:
        return None
    effect, control = None, scores.get(record.control)
    contenders = [s.values.mean(axis=0) for m, s in scores.items() if m != record.control]
    if control is not None and contenders:
        differences = np.stack(contenders) - control.values.mean(axis=0)
        deviations = differences - differences.mean(axis=1, keepdims=True)
        effect = design_effect(deviations, control.groups)
    return {"source": record.group_source, "n": len(set(record.groups)), "design_effect": effect}
