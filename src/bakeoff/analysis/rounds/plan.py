"""The plan of a study's looks, and the rule that they follow."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from bakeoff.analysis.error_distribution import SHARED_WITH_CONTROL
from bakeoff.analysis.rounds import boundaries

ALPHA = 0.045
"""What the looks of a study spend in all; the rest of 5 % is in reserve for ``--again``."""
RESERVE = 0.005
CLOCK_SHARE = 0.5
"""Part of the items' share that the clock counts. It is estimated, and an estimate that is too high
spends too early: halved, the worst of the simulated rows fell from 7.2 to 5.5 % false verdicts."""
FUTILITY = 0.05
"""A contender whose chance of a verdict at the last look is below this is closed. At 10 % and more,
``equivalent`` is lost in studies where it would still have been found."""
DRAWS, DRAW_SEED = 200_000, 20261130
"""Draws, and their seed, of the joint boundary of several contenders."""
RULE = "rounds-1"
"""Name of the rule; a change of any formula takes a new one."""


@dataclass(frozen=True)
class RoundsPlan:
    """When a study looks at its results, and what it decides.

    ``seeds`` are those of all planned replicates, in order, and ``looks`` the numbers of replicates
    at which a look is taken, ascending; the last is the most. A single look is the analysis of a
    fixed number of seeds. ``margin`` is in the metric's unit, and ``better`` is ``higher`` or
    ``lower``. ``alpha`` is the share of studies with a false verdict that all looks together may
    reach. ``n_contenders`` counts the planned ones, if some have no scores; None: those given.
    """

    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    margin: float
    better: str
    alpha: float = ALPHA
    draws: int = DRAWS
    draw_seed: int = DRAW_SEED
    n_contenders: int | None = None

    def __post_init__(self) -> None:
        ascending = list(self.looks) == sorted(set(self.looks)) and bool(self.looks)
        if not ascending or self.looks[0] < 1 or self.looks[-1] > len(self.seeds):
            raise ValueError(f"looks {self.looks} do not fit {len(self.seeds)} seeds")

    @property
    def most(self) -> int:
        """The number of replicates at the last look."""
        return self.looks[-1]


def again_alpha(number: int) -> float:
    """Return what the ``number``-th further look (from 1) of ``--again`` spends of the reserve.

    Each spends half of what is left, so any number of them together keeps within the reserve.
    """
    return float(RESERVE / 2**number)


def rule_hash() -> str:
    """Return a hash of the rule's version and constants, which a stored look names."""
    rule = {
        "rule": RULE,
        "alpha": ALPHA,
        "reserve": RESERVE,
        "clock_share": CLOCK_SHARE,
        "max_clock": boundaries.MAX_CLOCK,
        "least_alpha": boundaries.LEAST_ALPHA,
        "futility": FUTILITY,
        "shared_with_control": SHARED_WITH_CONTROL,
    }
    return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:16]
