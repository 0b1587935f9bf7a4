"""Racing by successive halving: which search trials continue after a rung.

Inside a method the settings with the lowest mean validation loss continue. A contender stops as a
whole only if its best setting is forecast to be worse than the control's beyond the margin and its
costs cannot put it on the Pareto front. The control never stops. Every decision comes with its
numbers. docs/race.md has the rules, the origin of the constants and the simulations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.pareto import COST_TIE

KEEP = (2, 1)
"""Settings of a method that continue after the first, second, ... rung; the last one repeats."""
ALPHA = 0.05
"""Probability that the race stops any contender that would have ended within the margin."""
MARGIN = 0.02
"""Share of the control's loss by which a contender may be worse and still continue."""
DRIFT = 0.04
"""Standard deviation of the change in the difference to the control over the whole budget, as a
share of the control's loss; at a rung it is scaled by the remaining share of the budget."""
FIRST_STOP = 1
"""First rung (from 0) at which a method may stop as a whole: before it slow starters look bad."""

Costs = Mapping[str, Mapping[str, float | None]]
"""Cost by method and axis; lower is better, None if not measured."""


@dataclass(frozen=True)
class Rules:
    """Parameters of a race: ``rungs`` are steps, ``steps`` is the whole budget."""

    rungs: tuple[int, ...]
    steps: int
    contenders: int
    keep: tuple[int, ...] = KEEP
    alpha: float = ALPHA
    margin: float = MARGIN
    drift: float = DRIFT
    first_stop: int = FIRST_STOP

    @property
    def level(self) -> float:
        """The error level of one test: alpha divided by rungs and contenders (Bonferroni)."""
        tests = max(1, len(self.rungs) - self.first_stop)
        return self.alpha / (tests * max(1, self.contenders))

    def between_contenders(self) -> Rules:
        """Return the rules for the comparison of two contenders.

        Both drift, so their variances add up. Each of the other contenders is a further test, so
        the level is divided by their number once more.
        """
        shared = self.alpha / max(1, self.contenders)
        return replace(self, drift=self.drift * math.sqrt(2), alpha=shared)


@dataclass(frozen=True, eq=False)
class RungStanding:
    """A trial at a rung: ``losses`` is ``[items]`` in nats, None if it diverged or failed."""

    trial_id: str
    method: str
    learning_rate: float
    losses: NDArray[np.float64] | None
    score: float | None = None
    """Replaces the loss in the ranking of settings; lower is better."""

    @property
    def mean(self) -> float:
        """The mean loss; infinite without one."""
        return math.inf if self.losses is None else float(self.losses.mean())

    @property
    def rank(self) -> float:
        """The sort key among a method's settings: the score if there is one, else the mean loss."""
        return self.mean if self.score is None or self.losses is None else self.score


@dataclass(frozen=True)
class Decision:
    """Decision whether a trial continues after a rung, with its reason and numbers."""

    step: int
    trial_id: str
    method: str
    goes_on: bool
    reason: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Forecast:
    """A contender's forecast difference to the control, and the method that dominates it."""

    numbers: dict[str, float] | None = None
    dominated_by: str | None = None

    @property
    def worse(self) -> bool:
        """Whether it is significantly worse than the control beyond the margin."""
        return self.numbers is not None and self.numbers["p_within"] < self.numbers["level"]


def decide_rung(
    standings: Sequence[RungStanding], control: str, costs: Costs, rung: int, rules: Rules
) -> tuple[Decision, ...]:
    """Return a decision on every trial at rung number ``rung`` (from 0), in the order given.

    A method with an unmeasured cost may be on the front, so it continues.
    """
    ranked = {method: _rank_settings(standings, method) for method in {s.method for s in standings}}
    best = {method: settings[0] for method, settings in ranked.items()}
    forecasts = {
        method: _forecast_method(method, best, control, costs, rung, rules) for method in best
    }
    decisions = []
    for standing in standings:
        settings, forecast = ranked[standing.method], forecasts[standing.method]
        place = settings.index(standing) + 1
        decisions.append(_build_decision(standing, place, len(settings), forecast, rung, rules))
    return tuple(decisions)


def forecast_difference(
    contender: RungStanding, control: RungStanding, rung: int, rules: Rules
) -> dict[str, float] | None:
    """Return the difference to the control and the probability that it ends within the margin.

    With d the differences by item and s = 1 - rung / steps the remaining share of the budget,

        standard_error^2 = sd(d)^2 / n + (drift * control's mean loss * s)^2
        p_within = Phi((margin - mean(d)) / standard_error)

    in nats: the difference at the end is taken as the present one plus independent noise of the
    items and of the rest of the training. ``level`` is the bound that ``p_within`` must fall below.
    None if a loss is missing or there are fewer than two items.
    """
    if contender.losses is None or control.losses is None or control.losses.size < 2:
        return None
    differences = contender.losses - control.losses
    items = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    left = 1 - rules.rungs[rung] / rules.steps
    error = math.hypot(items, rules.drift * control.mean * left)
    margin = rules.margin * control.mean
    mean = float(differences.mean())
    within = NormalDist().cdf((margin - mean) / error) if error > 0 else float(mean <= margin)
    return {
        "difference": mean,
        "standard_error": error,
        "margin": margin,
        "p_within": within,
        "level": rules.level,
    }


def is_dominated(costs: Costs, method: str, control: str) -> bool:
    """Return whether the control (or another method) costs no more on every axis, up to ties."""
    mine, theirs = costs.get(method, {}), costs.get(control, {})
    if not mine or not theirs:
        return False
    pairs = [(mine.get(axis), theirs.get(axis)) for axis in mine.keys() | theirs.keys()]
    return all(a is not None and b is not None and b <= a * (1 + COST_TIE) for a, b in pairs)


def _forecast_method(
    method: str,
    best: Mapping[str, RungStanding],
    control: str,
    costs: Costs,
    rung: int,
    rules: Rules,
) -> Forecast:
    if method == control or control not in best:
        return Forecast()
    forecast = Forecast(forecast_difference(best[method], best[control], rung, rules))
    if not forecast.worse or rung < rules.first_stop:
        return forecast
    better = _better_methods(method, best, control, rung, rules)
    dominating = next((rival for rival in better if is_dominated(costs, method, rival)), None)
    return Forecast(forecast.numbers, dominating)


def _better_methods(
    method: str, best: Mapping[str, RungStanding], control: str, rung: int, rules: Rules
) -> Iterator[str]:
    """Yield the control, then the other methods that are significantly better, best first."""
    yield control
    stricter = rules.between_contenders()
    for rival in sorted(best, key=lambda name: (best[name].mean, name)):
        numbers = forecast_difference(best[method], best[rival], rung, stricter)
        if Forecast(numbers).worse:
            yield rival


def _build_decision(
    standing: RungStanding, place: int, of: int, forecast: Forecast, rung: int, rules: Rules
) -> Decision:
    numbers: dict[str, Any] = {
        "mean_loss": None if standing.losses is None else standing.mean,
        "score": standing.score,
        "place": place,
        "of": of,
        "outdone_by": forecast.dominated_by,
        **(forecast.numbers or {}),
    }
    kept = rules.keep[min(rung, len(rules.keep) - 1)]
    goes_on, reason = _decide_trial(standing, place, of, kept, forecast)
    step = rules.rungs[rung]
    return Decision(step, standing.trial_id, standing.method, goes_on, reason, numbers)


def _decide_trial(
    standing: RungStanding, place: int, of: int, kept: int, forecast: Forecast
) -> tuple[bool, str]:
    if standing.losses is None:
        return False, "it has no validation loss"
    by = "loss" if standing.score is None else "score"
    ranking = f"setting {place} of {of} by validation {by}"
    if place > kept:
        return False, f"{ranking}; {kept} continue{'s' if kept == 1 else ''}"
    if not forecast.worse or forecast.numbers is None:
        return True, ranking
    if forecast.dominated_by is None:
        return True, f"{ranking}; worse than the control, but no better method costs as little"
    return False, (
        "the method is worse than the control by {difference:.3g} nats (probability of ending "
        "within the margin {p_within:.1g}, level {level:.1g})".format(**forecast.numbers)
        + f", and {forecast.dominated_by}, which is better, costs no more on any axis"
    )


def _rank_settings(standings: Sequence[RungStanding], method: str) -> list[RungStanding]:
    of_method = [s for s in standings if s.method == method]
    return sorted(of_method, key=lambda s: (s.rank, s.mean, s.learning_rate, s.trial_id))
