"""Unit-free gains over the control, which can be weighted and added up.

Only methods that are not worse than the control are candidates: the control itself and contenders
whose verdict is ``better`` or ``equivalent`` and that have learnt. The gain is

- in quality, the difference in margins for a ``better`` method, and 0 for an ``equivalent`` one,
  whose difference does not matter;
- in memory, speed and size, log2(control's cost / method's cost), so 1 for each halving, and 0 for
  costs within 5 % (``is_cost_tie``);
- in serving, 1 if the method can be served and the control cannot, -1 for the reverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.pareto import COST_AXES, COST_TIE, QUALITY, axis_value, is_cost_tie
from bakeoff.analysis.per_method.accelerators import has_extra_accelerators
from bakeoff.analysis.recommendation.not_learnt import may_have_learnt
from bakeoff.core.record import StudyRecord

Row = dict[str, Any]

SERVING = "serving"
NOT_WORSE = (Verdict.CONTROL, Verdict.BETTER, Verdict.EQUIVALENT)


@dataclass(frozen=True)
class WeightedChoice:
    """The chosen method's row, and each candidate's weighted gain over the control.

    A total is None if a weighted cost was not measured or cannot be compared.
    """

    chosen: Row
    totals: dict[str, float | None]


def choose_by_weights(
    record: StudyRecord, control: Row, rows: Sequence[Row], weights: Mapping[str, float]
) -> WeightedChoice:
    """Choose among the control and every contender that is not worse.

    The highest total wins. Totals within the effect of tied costs are equal: then a ``better``
    method precedes the control, the control precedes an ``equivalent`` one, and after that the
    better score decides.
    """
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    candidates = [
        r for r in rows if r["verdict"] in NOT_WORSE and r["score"] and may_have_learnt(r)
    ]
    totals = {r["method"]: total_gain(record, control, r, weights) for r in candidates}
    known = {method: total for method, total in totals.items() if total is not None}
    if not known:
        return WeightedChoice(control, totals)
    tie = math.log2(1 + COST_TIE) * sum(w for name, w in weights.items() if name in COST_AXES)
    least = max(known.values()) - tie
    near = [r for r in candidates if known.get(r["method"], -math.inf) >= least]
    sign = 1 if record.metric.better == "higher" else -1

    def rank(row: Row) -> tuple[bool, bool, float]:
        first, second = row["verdict"] == Verdict.BETTER, row is control
        return first, second, sign * row["score"]["estimate"]

    return WeightedChoice(max(near, key=rank), totals)


def total_gain(
    record: StudyRecord, control: Row, row: Row, weights: Mapping[str, float]
) -> float | None:
    """Return a method's weighted sum of gains; None if one of them is unknown."""
    gains = [(w, gain_over_control(record, control, row, name)) for name, w in weights.items()]
    known = [weight * gain for weight, gain in gains if gain is not None]
    return math.fsum(known) if len(known) == len(gains) else None


def gain_over_control(record: StudyRecord, control: Row, row: Row, name: str) -> float | None:
    """Return a method's gain over the control on one axis, unit-free; None if unknown."""
    if name == QUALITY:
        return _quality_gain(record, row)
    if name == SERVING:
        return float(can_be_served(record, row) - can_be_served(record, control))
    cost = comparable_cost(control, row, name)
    baseline = comparable_cost(control, control, name)
    if cost is None or baseline is None or min(cost, baseline) <= 0:
        return None
    return 0.0 if is_cost_tie(cost, baseline) else math.log2(baseline / cost)


def comparable_cost(control: Row, row: Row, name: str) -> float | None:
    """Return a method's cost, None if it cannot be compared with the control's.

    Memory of another kind cannot be compared, nor a cost that was measured with an accelerator
    that the control lacks: its saving is not due to the method.
    """
    kinds_differ = row["cost"]["memory_kind"] != control["cost"]["memory_kind"]
    if name == "memory" and kinds_differ:
        return None
    if name in ("memory", "speed") and has_extra_accelerators(row, control):
        return None
    return axis_value(row, COST_AXES[name])


def can_be_served(record: StudyRecord, row: Row) -> bool:
    """Return whether a method is known to save as LoRA, convert to LoRA, or merge."""
    return record.serving.get(row["method"]) is not None


def _quality_gain(record: StudyRecord, row: Row) -> float:
    if row["verdict"] != Verdict.BETTER:
        return 0.0
    return abs(float(row["difference"]["estimate"])) / record.margin
