"""The race: which search trials go on after a rung. Pure; every decision comes with its numbers.

Stands in the study half between the store and the plan of the next segments: standings in (each
trial's validation loss, item by item, at one step), decisions out. Two rules:

- inside a method, the settings with the lowest mean loss go on (2 after the first rung, 1 after the
  second): they share seed, data and items, and one of them must win anyway;
- a contender stops as a whole only when its best setting is worse than the control's beyond the
  margin, with the error divided over all looks and contenders, **and** its costs cannot put it on
  the Pareto front: the control, or another method that is as surely better, costs no more on any
  axis. The control never stops.

The second rule is a forecast: the loss at a rung is not the loss at the end. The difference that is
seen is taken as the one at the end plus noise of two kinds, added up as variances: the items'
(``sd / sqrt(n)``) and the drift between the rung and the end, another seed's luck included
(``DRIFT`` of the control's loss, less the further the trial is).

How the numbers were set, from 63 published runs and studies simulated from them
(``benchmarks/race.py``; ``docs/race.md`` has the table):

- ``DRIFT``: from 30 % of the budget to the end the differences of the runs above 30 % accuracy to
  LoRA's moved by 2.8 % of its loss (root mean square): 0.04 of it for the 70 % that were left.
- ``FIRST_STOP``: at 10 % they moved by 19 %, as slow starters caught up, which is no noise of one
  size. Where slow starts were given to good methods too, stopping methods at 10 % already lost the
  best one in 18 % of studies, from the second rung on in 4 %; it saves 4 % of the steps.
- ``MARGIN`` and ``ALPHA`` change little (0 to 0.05, 0.01 to 0.2: 2.18 to 2.24 times fewer steps).
  2 % of the loss is about 1.5 points of accuracy there.
- ``KEEP``: (2, 1) costs 0.1 points of a method's score against the full search, (1,) 0.36.
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
"""Settings of a method that go on after the first, the second, ... rung; the last number stays."""
ALPHA = 0.05
"""Chance that any contender that would have ended within the margin is stopped, in the race."""
MARGIN = 0.02
"""Share of the control's loss that a contender may be worse by and still go on."""
DRIFT = 0.04
"""Standard deviation, as a share of the control's loss, of how far the difference to the control
would move over the whole budget; at a rung it is that times the share that is left."""
FIRST_STOP = 1
"""Rung (from 0) from which a contender may stop as a whole: before it slow starters look worst."""

Costs = Mapping[str, Mapping[str, float | None]]
"""A method's cost on each axis: lower is better, None: not measured."""


@dataclass(frozen=True)
class Rules:
    """How a study races: ``rungs`` are steps, ``steps`` the whole budget."""

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
        """The error that one look at one contender may spend."""
        looks = max(1, len(self.rungs) - self.first_stop)
        return self.alpha / (looks * max(1, self.contenders))

    def between_contenders(self) -> Rules:
        """Return the rules for one contender against another: each of the two drifts.

        Any of the others may be the one that errs, so they share the level once more.
        """
        shared = self.alpha / max(1, self.contenders)
        return replace(self, drift=self.drift * math.sqrt(2), alpha=shared)


@dataclass(frozen=True, eq=False)
class RungStanding:
    """A trial at a rung: ``losses`` is ``[items]`` in nats, None where it diverged or failed."""

    trial_id: str
    method: str
    learning_rate: float
    losses: NDArray[np.float64] | None
    score: float | None = None
    """What settings are ranked by in place of the loss: lower is better."""

    @property
    def mean(self) -> float:
        """The mean loss; infinite where there is none."""
        return math.inf if self.losses is None else float(self.losses.mean())

    @property
    def rank(self) -> float:
        """What settings of a method are ordered by: the score where there is one, else the loss."""
        return self.mean if self.score is None or self.losses is None else self.score


@dataclass(frozen=True)
class Decision:
    """Whether a trial goes on after a rung, why, and the numbers that it rests on."""

    step: int
    trial_id: str
    method: str
    goes_on: bool
    reason: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Forecast:
    """A contender's forecast against the control, and the method that makes it superfluous."""

    numbers: dict[str, float] | None = None
    dominated_by: str | None = None

    @property
    def worse(self) -> bool:
        """Whether it is surely worse than the control beyond the margin."""
        return self.numbers is not None and self.numbers["p_within"] < self.numbers["level"]


def decide_rung(
    standings: Sequence[RungStanding], control: str, costs: Costs, rung: int, rules: Rules
) -> tuple[Decision, ...]:
    """Decide on every trial at rung number ``rung`` (from 0), in the order given.

    A method with a cost that was not measured may be on the front, so it goes on.
    """
    ranked = {method: _rank_settings(standings, method) for method in {s.method for s in standings}}
    best = {method: own[0] for method, own in ranked.items()}
    outlooks = {
        method: _forecast_method(method, best, control, costs, rung, rules) for method in best
    }
    return tuple(
        _build_decision(
            s, ranked[s.method].index(s) + 1, len(ranked[s.method]), outlook, rung, rules
        )
        for s in standings
        for outlook in (outlooks[s.method],)
    )


def forecast_difference(
    contender: RungStanding, control: RungStanding, rung: int, rules: Rules
) -> dict[str, float] | None:
    """Return the contender's difference to the control and the chance that it ends within margin.

    ``difference`` and ``standard_error`` are in nats, ``p_within`` is the probability that the
    difference at the end is at most the margin, ``level`` what it must fall below. None where a
    loss is missing or a single item tells nothing of chance.
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
    """Say whether the control (or another method) costs no more than a method on every axis."""
    own, other = costs.get(method, {}), costs.get(control, {})
    if not own or not other:
        return False
    pairs = [(own.get(axis), other.get(axis)) for axis in own.keys() | other.keys()]
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
    outlook = Forecast(forecast_difference(best[method], best[control], rung, rules))
    if not outlook.worse or rung < rules.first_stop:
        return outlook
    rivals = _better_methods(method, best, control, rung, rules)
    by = next((rival for rival in rivals if is_dominated(costs, method, rival)), None)
    return Forecast(outlook.numbers, by)


def _better_methods(
    method: str, best: Mapping[str, RungStanding], control: str, rung: int, rules: Rules
) -> Iterator[str]:
    """Yield the control, which is known to be better, then all that are as surely, best first."""
    yield control
    stricter = rules.between_contenders()
    for rival in sorted(best, key=lambda name: (best[name].mean, name)):
        numbers = forecast_difference(best[method], best[rival], rung, stricter)
        if Forecast(numbers).worse:
            yield rival


def _build_decision(
    standing: RungStanding, place: int, of: int, outlook: Forecast, rung: int, rules: Rules
) -> Decision:
    numbers: dict[str, Any] = {
        "mean_loss": None if standing.losses is None else standing.mean,
        "score": standing.score,
        "place": place,
        "of": of,
        "outdone_by": outlook.dominated_by,
        **(outlook.numbers or {}),
    }
    kept = rules.keep[min(rung, len(rules.keep) - 1)]
    goes_on, reason = _decide_trial(standing, place, of, kept, outlook)
    step = rules.rungs[rung]
    return Decision(step, standing.trial_id, standing.method, goes_on, reason, numbers)


def _decide_trial(
    standing: RungStanding, place: int, of: int, kept: int, outlook: Forecast
) -> tuple[bool, str]:
    if standing.losses is None:
        return False, "it has no validation loss"
    by = "loss" if standing.score is None else "score"
    ranking = f"setting {place} of {of} by validation {by}"
    if place > kept:
        return False, f"{ranking}; {kept} go on"
    if not outlook.worse or outlook.numbers is None:
        return True, ranking
    if outlook.dominated_by is None:
        return True, f"{ranking}; worse than the control, but no better method costs as little"
    return False, (
        "the method is worse than the control by {difference:.3g} nats (chance of ending within "
        "the margin {p_within:.1g}, level {level:.1g})".format(**outlook.numbers)
        + f", and {outlook.dominated_by}, which is better, costs no more on any axis"
    )


def _rank_settings(standings: Sequence[RungStanding], method: str) -> list[RungStanding]:
    own = [s for s in standings if s.method == method]
    return sorted(own, key=lambda s: (s.rank, s.mean, s.learning_rate, s.trial_id))
