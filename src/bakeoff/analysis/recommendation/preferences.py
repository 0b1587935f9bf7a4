"""What each method gains over the control, in numbers that can be added up whatever their units.

Stands under ``recommend`` in analysis: finished rows and weights in, the method to take and
everybody's total out. Only methods that are not worse than the control are weighed: the control
itself and contenders whose verdict is ``better`` or ``equivalent``. A gain counts

- for quality, 1 for each margin that a ``better`` method is better by; an ``equivalent`` one gains
  nothing, because what it differs by does not matter;
- for memory, speed and size, 1 for each halving: log2(control's cost / own cost), and 0 for
  ``tied`` costs (within 5 %);
- for serving, 1 where the method can be served and the control cannot, -1 the other way round.

So none of them depends on a unit, and gains in different things can be weighed against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.pareto import COST_AXES, COST_TIE, QUALITY, axis_value, is_cost_tie
from bakeoff.analysis.per_method.accelerators import has_extra_accelerators
from bakeoff.core.record import StudyRecord

Row = dict[str, Any]

SERVING = "serving"
NOT_WORSE = (Verdict.CONTROL, Verdict.BETTER, Verdict.EQUIVALENT)


@dataclass(frozen=True)
class WeightedChoice:
    """The method to take, and by method the weighted gain over the control.

    A total is None where something that is weighed was not measured, or compares with nothing.
    """

    chosen: Row
    totals: dict[str, float | None]


def choose_by_weights(
    record: StudyRecord, control: Row, rows: Sequence[Row], weights: Mapping[str, float]
) -> WeightedChoice:
    """Weigh the control and every contender that is not worse.

    The highest total wins. Totals that differ by no more than tied costs do are equal: then a
    ``better`` method goes before the control, the control before an ``equivalent`` one, and the
    better score decides.
    """
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    running = [r for r in rows if r["verdict"] in NOT_WORSE and r["score"]]
    totals = {r["method"]: total_gain(record, control, r, weights) for r in running}
    known = {method: gained for method, gained in totals.items() if gained is not None}
    if not known:
        return WeightedChoice(control, totals)
    tie = math.log2(1 + COST_TIE) * sum(w for name, w in weights.items() if name in COST_AXES)
    least = max(known.values()) - tie
    near = [r for r in running if known.get(r["method"], -math.inf) >= least]
    sign = 1 if record.metric.better == "higher" else -1

    def rank(row: Row) -> tuple[bool, bool, float]:
        first, second = row["verdict"] == Verdict.BETTER, row is control
        return first, second, sign * row["score"]["estimate"]

    return WeightedChoice(max(near, key=rank), totals)


def total_gain(
    record: StudyRecord, control: Row, row: Row, weights: Mapping[str, float]
) -> float | None:
    """Return the sum of a method's gains times their weights; None where one is unknown."""
    gains = [(w, gain_over_control(record, control, row, name)) for name, w in weights.items()]
    known = [weight * gained for weight, gained in gains if gained is not None]
    return math.fsum(known) if len(known) == len(gains) else None


def gain_over_control(record: StudyRecord, control: Row, row: Row, name: str) -> float | None:
    """Return what a method gains over the control in one respect, unit-free; None: unknown."""
    if name == QUALITY:
        return _quality_gain(record, row)
    if name == SERVING:
        return float(can_be_served(record, row) - can_be_served(record, control))
    own, other = comparable_cost(control, row, name), comparable_cost(control, control, name)
    if own is None or other is None or min(own, other) <= 0:
        return None
    return 0.0 if is_cost_tie(own, other) else math.log2(other / own)


def comparable_cost(control: Row, row: Row, name: str) -> float | None:
    """Return a method's cost, None where it cannot be held against the control's.

    Memory of another kind cannot, nor what was measured with an accelerator that the control had
    to do without: what that saves is no merit of the method.
    """
    kinds_differ = row["cost"]["memory_kind"] != control["cost"]["memory_kind"]
    if name == "memory" and kinds_differ:
        return None
    if name in ("memory", "speed") and has_extra_accelerators(row, control):
        return None
    return axis_value(row, COST_AXES[name])


def can_be_served(record: StudyRecord, row: Row) -> bool:
    """Tell whether a method is known to be saved as LoRA, to convert to it, or to merge."""
    return record.serving.get(row["method"]) is not None


def _quality_gain(record: StudyRecord, row: Row) -> float:
    if row["verdict"] != Verdict.BETTER:
        return 0.0
    return abs(float(row["difference"]["estimate"])) / record.margin
