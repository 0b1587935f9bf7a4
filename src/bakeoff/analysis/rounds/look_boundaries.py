"""The boundaries of one look: those that it uses, and those that it expects at the last look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from bakeoff.analysis.rounds.boundaries import (
    LEAST_ALPHA,
    Crossing,
    ExactCrossing,
    complete_boundary,
    difference_crossing,
    extend_boundary,
    information_times,
    spent_alpha,
)
from bakeoff.analysis.rounds.look import Look
from bakeoff.analysis.rounds.plan import RoundsPlan


class LookBoundaries:
    """The boundaries of the look after those ``made``, from the clock as this look sees it.

    The correlations between the looks follow this clock; the earlier looks' critical values and
    what they spent stay as they were.
    """

    def __init__(
        self, plan: RoundsPlan, clock: float, n_contenders: int, made: Sequence[Look]
    ) -> None:
        self._plan, self._made, self._clock = plan, made, clock
        self._n_contenders = n_contenders
        self._times = information_times(clock, plan.looks)
        self._one_sided = ExactCrossing(clock, plan.looks, two_sided=False)

    @property
    def time(self) -> float:
        """The information time of the look."""
        return self._times[len(self._made)]

    @cached_property
    def critical(self) -> float:
        """The two-sided critical value for all contenders; infinite where nothing is spent."""
        return self._differences[len(self._made)]

    @cached_property
    def spent(self) -> float:
        """The alpha that the two-sided tests have spent after this look."""
        return _spent_after([*self._made_times, self.time], self._plan.alpha)

    @cached_property
    def equivalence(self) -> dict[int, float]:
        """The one-sided critical value at alpha / j, by j; infinite where nothing is spent."""
        values = {}
        for j in range(1, self._n_contenders + 1):
            alpha = self._plan.alpha / j
            spent = _spent_after(self._made_times, alpha)
            used = self._used_equivalence(j)
            values[j] = extend_boundary(self._one_sided, used, spent, self.time, alpha)[0]
        return values

    @property
    def expected_critical(self) -> float:
        """The two-sided critical value at the last look, if the clock stays as it is."""
        return self._differences[-1]

    def expected_equivalence(self, j: int) -> float:
        """Return the one-sided critical value at the last look, if the clock stays as it is."""
        previous = [*self._used_equivalence(j), self.equivalence[j]]
        return self._complete(self._one_sided, self._plan.alpha / j, previous)[-1]

    @cached_property
    def _differences(self) -> tuple[float, ...]:
        plan = self._plan
        crossing = difference_crossing(
            self._clock, plan.looks, self._n_contenders, plan.draws, plan.draw_seed
        )
        used = [critical_value(look.critical) for look in self._made]
        return self._complete(crossing, plan.alpha, used)

    @property
    def _made_times(self) -> list[float]:
        return [look.information for look in self._made]

    def _used_equivalence(self, j: int) -> list[float]:
        return [critical_value(look.equivalence_critical[j]) for look in self._made]

    def _complete(
        self, crossing: Crossing, alpha: float, previous: Sequence[float]
    ) -> tuple[float, ...]:
        times = [*self._made_times, *self._times[len(self._made) :]]
        spent = _spent_after(times[: len(previous)], alpha)
        return complete_boundary([crossing] * len(times), times, alpha, previous, spent)


def critical_value(stored: float | None) -> float:
    """Return a stored critical value, infinite where the look spent nothing."""
    return math.inf if stored is None else stored


def _spent_after(times: Sequence[float], alpha: float) -> float:
    """Return the alpha spent after looks at these information times."""
    spent = 0.0
    for time in times:
        total = spent_alpha(time, alpha)
        spent = total if total - spent > LEAST_ALPHA else spent
    return spent
