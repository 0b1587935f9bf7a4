"""Whether a verdict depends on the learning rate of the task's new output layer.

The control and one contender are trained again at other rates of that layer, on validation, at one
seed. A verdict depends on the rate if the difference moves by more than its noise, to where the
verdict would be another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Comparison, Verdict
from bakeoff.core.record import StudyRecord

ERRORS = 2.0
"""A shift counts beyond so many standard errors."""


@dataclass(frozen=True)
class Shift:
    """The change of a contender's difference to the control at another rate of the output layer.

    ``factor`` is that rate over the study's. ``error`` is the standard error of ``shift`` over the
    items; the noise of the seed is not in it.
    """

    factor: float
    shift: float
    error: float

    def to_json(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)


def measure_shift(
    factor: float,
    contender: tuple[Sequence[float], Sequence[float]],
    control: tuple[Sequence[float], Sequence[float]],
) -> Shift:
    """Return the shift between item scores ``[items]`` at the study's rate and at another one."""
    before, after = (np.subtract(c, k) for c, k in zip(contender, control, strict=True))
    change = after - before
    error = float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else math.inf
    return Shift(factor, float(change.mean()), error)


def verdict_turns(comparison: Comparison, shift: Shift, noise: float, margin: float) -> bool:
    """Return whether a verdict would be another one after a shift that is beyond its noise.

    ``noise`` is the standard deviation of the difference between replicates: both trainings of the
    shift have it.
    """
    error = math.hypot(shift.error, math.sqrt(2) * noise)
    if not abs(shift.shift) > ERRORS * error:
        return False
    before = comparison.difference.estimate
    moved = before + shift.shift
    if comparison.verdict in (Verdict.BETTER, Verdict.WORSE):
        return moved * before <= 0
    return comparison.verdict is Verdict.EQUIVALENT and abs(moved) > margin


def sensitive_methods(
    record: StudyRecord, scores: Mapping[str, Scores], comparisons: Mapping[str, Comparison]
) -> list[str]:
    """Return the checked contenders whose verdict depends on the output layer's rate."""
    checked: Mapping[str, Any] = (record.head or {}).get("checked", {})
    return [
        method
        for method, shifts in checked.items()
        if method in comparisons
        and any(
            verdict_turns(
                comparisons[method],
                Shift(**shift),
                _replicate_noise(scores[method], scores[record.control]),
                record.margin,
            )
            for shift in shifts
        )
    ]


def _replicate_noise(contender: Scores, control: Scores) -> float:
    """Return the standard deviation of the difference between common seeds; 0 with one."""
    common = sorted(set(contender.seeds) & set(control.seeds))
    means = [
        float(contender.values[contender.seeds.index(s)].mean())
        - float(control.values[control.seeds.index(s)].mean())
        for s in common
    ]
    return float(np.std(means, ddof=1)) if len(means) > 1 else 0.0


def head_section(
    record: StudyRecord, scores: Mapping[str, Scores], comparisons: Mapping[str, Comparison]
) -> dict[str, Any] | None:
    """Return the report's part on the output layer's rate; None for a task without such a layer.

    ``sensitive`` is absent if nothing was checked.
    """
    if record.head is None:
        return None
    section = {key: value for key, value in record.head.items() if key != "checked"}
    if record.head.get("checked"):
        section["sensitive"] = sensitive_methods(record, scores, comparisons)
    return section


def sensitivity_warning(record: StudyRecord, methods: Sequence[str]) -> str:
    """Return the warning that a verdict depends on the output layer's rate."""
    names = ", ".join(record.titles.get(method, method) for method in methods)
    return (
        f"The verdict of {names} depends on the learning rate of the new output layer: at a third "
        "or three times of it the difference to the control would be another one. Set "
        'task.head_learning_rate, or search it jointly with the method\'s ("joint").'
    )
