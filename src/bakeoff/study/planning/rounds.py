"""Rounds: the numbers of replicates after which a study analyses its results."""

from __future__ import annotations

from bakeoff.core.results import Cost
from bakeoff.study.config.budget import BudgetSpec

ROUNDS = "rounds"
"""Value of ``budget.seeds``: replicates are added in rounds."""
LOOKS = (3, 5, 8, 12, 16)
"""Replicates at each look. From 3 to 5 is the best buy; beyond 8 gains only where seeds differ by
2 points or more (docs/verdicts.md)."""
FEW_CONTENDERS = 2
"""With so few contenders, little is pooled: three replicates gave 7 % false verdicts, five 5 %."""
FEW_FIRST = 5
"""The first look with few contenders."""
MOST_IN_LANES, MOST_ELSEWHERE = 16, 8
"""The largest number of replicates, where lanes are nearly free and elsewhere."""
FREE_LANES = 3.0
"""Lanes are nearly free if steps of 16 lanes take less than this many single steps."""


def planned_looks(budget: BudgetSpec, n_contenders: int, lanes_free: bool) -> tuple[int, ...]:
    """Return the numbers of replicates at the looks of a study, ascending."""
    if budget.seeds != ROUNDS:
        return (int(budget.seeds),)
    most = budget.most or (MOST_IN_LANES if lanes_free else MOST_ELSEWHERE)
    first = FEW_FIRST if n_contenders <= FEW_CONTENDERS else LOOKS[0]
    return (*(n for n in LOOKS if first <= n < most), most)


def are_lanes_free(cost: Cost | None) -> bool:
    """Return whether steps of 16 lanes cost little more than those of a single lane."""
    if cost is None or cost.lanes_ratio is None:
        return False
    # a cost without the number is one of a full group
    return lanes_are_free(cost.lanes_ratio, cost.lanes_timed or MOST_IN_LANES)


def lanes_are_free(ratio: float, lanes: int) -> bool:
    """Return whether 16 lanes are nearly free if a step of ``lanes`` takes ``ratio`` single ones.

    If fewer share a step, 16 take several.
    """
    return ratio * max(1.0, MOST_IN_LANES / lanes) < FREE_LANES
