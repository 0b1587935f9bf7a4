"""Repeated p values: the smallest overall alpha whose boundary a statistic passes at a look.

Jennison and Turnbull (1984, https://doi.org/10.1016/0197-2456(84)90041-3). The clock of the looks
is taken as it was seen, and the boundary of each alpha is computed along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from bakeoff.analysis.error_distribution import FloatArray
from bakeoff.analysis.rounds.boundaries import (
    Crossing,
    ExactCrossing,
    boundary,
    difference_crossing,
)
from bakeoff.analysis.rounds.look import Look
from bakeoff.analysis.rounds.plan import RoundsPlan

LEAST_P = 1e-4
"""Smaller p values are not told apart."""
GRID = np.geomspace(LEAST_P, 0.9, 25)
"""Levels at which the boundary is computed; between them it is interpolated."""
DRAWS = 40_000
"""Draws of the boundaries that only p values use. The verdict's own level has its own boundary."""


@dataclass(frozen=True)
class _Curve:
    """Critical values of the last look by level, ascending levels and descending values."""

    levels: FloatArray
    critical: FloatArray

    def p_value(self, z: float, level: float, critical: float) -> float:
        """Return the p value of a score; it is below ``level`` exactly where z > ``critical``."""
        # normal quantiles of the levels are nearly linear in the critical values
        quantile = np.interp(-z, -self.critical, special.ndtri(self.levels / 2))
        found = max(LEAST_P, float(2 * special.ndtr(quantile)))
        found = found if z > self.critical[-1] else 1.0
        if z > critical:
            return min(found, float(np.nextafter(level, 0.0)))
        return max(found, level)


@dataclass
class RepeatedPValues:
    """The repeated p values of a study's looks; each look's boundaries are computed once."""

    plan: RoundsPlan
    looks: Sequence[Look]
    _curves: dict[tuple[int, int], _Curve] = field(default_factory=dict)

    def difference(self, number: int, z: float) -> float:
        """Return the p value of no difference, over all contenders and looks up to ``number``."""
        look = self.looks[number - 1]
        if look.critical is None:
            return 1.0
        curve = self._curve(number, 0, self.plan.alpha, look.critical)
        return curve.p_value(z, self.plan.alpha, look.critical)

    def equivalence(self, number: int, z: float, rank: int) -> float:
        """Return Holm's p value of a difference of the margin or more, over looks as well."""
        stored = self.looks[number - 1].equivalence_critical[rank]
        if stored is None:
            return 1.0
        level = self.plan.alpha / rank
        curve = self._curve(number, rank, level, stored)
        p_value = min(1.0, rank * curve.p_value(z, level, stored))
        # rank * (alpha / rank) may round to the other side of alpha
        below = float(np.nextafter(self.plan.alpha, 0.0))
        return min(p_value, below) if z > stored else max(p_value, self.plan.alpha)

    def _curve(self, number: int, rank: int, level: float, critical: float) -> _Curve:
        """Return the critical values at a look by level; ``rank`` 0 is the two-sided test."""
        key = number, rank
        if key not in self._curves:
            make = self._two_sided if rank == 0 else self._one_sided
            self._curves[key] = self._make_curve(number, make, level, critical)
        return self._curves[key]

    def _make_curve(
        self, number: int, make: Callable[[Look], Crossing], level: float, critical: float
    ) -> _Curve:
        looks = self.looks[:number]
        crossings = [make(look) for look in looks]
        times = [look.information for look in looks]
        levels = np.sort(np.append(GRID, level))
        values = np.array([boundary(crossings, times, a)[-1] for a in levels])
        # the draws of the curve are fewer than those of the look: shifted to agree at its level
        values = values + (critical - values[np.searchsorted(levels, level)])
        return _Curve(levels, np.minimum.accumulate(values))

    def _two_sided(self, look: Look) -> Crossing:
        plan, n_contenders = self.plan, max(look.equivalence_critical)
        return difference_crossing(look.clock, plan.looks, n_contenders, DRAWS, plan.draw_seed)

    def _one_sided(self, look: Look) -> Crossing:
        return ExactCrossing(look.clock, self.plan.looks, two_sided=False)
