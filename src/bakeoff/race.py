"""The race: which search trials go on after a rung. Pure; every decision comes with its numbers.

Stands in the study half between the store and the plan of the next segments: standings in (each
trial's validation loss, item by item, at one step), decisions out. Two rules:

- inside a method, the settings with the lowest mean loss go on (2 after the first rung, 1 after the
  second): they share seed, data and items, and one of them must win anyway;
- a contender stops as a whole only when its best setting is worse than the control's beyond the
  margin, with the error divided over all looks and contenders, **and** the control costs no more on
  any axis, so that the contender cannot be on the Pareto front. The control never stops.

The second rule is a forecast: the loss at a rung is not the loss at the end. The difference that is
seen is taken as the one at the end plus noise of two kinds, added up as variances: the items'
(``sd / sqrt(n)``) and the drift between the rung and the end, another seed's luck included
(``DRIFT`` of the control's loss, less the further the trial is).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEEP = (2, 1)
"""Settings of a method that go on after the first, the second, ... rung; the last number stays."""
ALPHA = 0.05
"""Chance that any contender that would not have ended worse is stopped, over the whole race."""
MARGIN = 0.02
"""Share of the control's loss that a contender may be worse by and still go on."""
DRIFT = 0.05
"""Standard deviation, as a share of the control's loss, of how far the difference to the control
still moves from the start of the plateau to the end. Set from the simulations in
``benchmarks/race.py``."""
COST_TIE = 0.05
"""Costs closer than this share are taken as equal: two readings of one probe differ as much."""


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


@dataclass(frozen=True)
class Standing:
    """A trial at a rung: ``losses`` is ``[items]`` in nats, None where it diverged or failed."""

    trial_id: str
    method: str
    learning_rate: float
    losses: NDArray[np.float64] | None

    @property
    def mean(self) -> float:
        """The mean loss; infinite where there is none."""
        return math.inf if self.losses is None else float(self.losses.mean())


@dataclass(frozen=True)
class Decision:
    """Whether a trial goes on after a rung, why, and the numbers that it rests on."""

    step: int
    trial_id: str
    method: str
    goes_on: bool
    reason: str
    numbers: dict[str, Any]


def decide(
    standings: Sequence[Standing],
    control: str,
    costs: Mapping[str, Mapping[str, float | None]],
    rung: int,
    rules: Rules,
) -> tuple[Decision, ...]:
    """Decide on every trial at rung number ``rung`` (from 0).

    ``costs`` maps a method to its cost on each axis (lower is better; None: not measured). A method
    with a missing cost may be on the front, so it goes on.
    """
    best = {m: _ranked(standings, m)[0] for m in dict.fromkeys(s.method for s in standings)}
    forecasts = {
        method: forecast(first, best[control], rung, rules)
        for method, first in best.items()
        if control in best and method != control
    }
    decisions = []
    for standing in standings:
        found = forecasts.get(standing.method)
        ranked = _ranked(standings, standing.method)
        place = ranked.index(standing) + 1
        kept = rules.keep[min(rung, len(rules.keep) - 1)]
        numbers: dict[str, Any] = {
            "mean_loss": None if standing.losses is None else standing.mean,
            "place": place,
            "of": len(ranked),
            **(found or {}),
        }
        goes_on, reason = _verdict(standing, place, kept, numbers, costs, control)
        decisions.append(
            Decision(
                rules.rungs[rung], standing.trial_id, standing.method, goes_on, reason, numbers
            )
        )
    return tuple(decisions)


def forecast(
    contender: Standing, control: Standing, rung: int, rules: Rules
) -> dict[str, float] | None:
    """Return the contender's difference to the control and the chance that it ends within margin.

    ``difference`` and ``standard_error`` are in nats, ``p_within`` is the probability that the
    difference at the end is at most the margin, ``level`` what it must fall below.
    """
    if contender.losses is None or control.losses is None:
        return None
    differences = contender.losses - control.losses
    items = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    left = 1 - rules.rungs[rung] / rules.steps
    drift = rules.drift * control.mean * left
    error = math.hypot(items, drift)
    margin = rules.margin * control.mean
    mean = float(differences.mean())
    within = NormalDist().cdf((margin - mean) / error) if error > 0 else float(mean <= margin)
    return {
        "difference": mean,
        "standard_error": error,
        "margin": margin,
        "p_within": within,
        "level": rules.alpha / (len(rules.rungs) * max(1, rules.contenders)),
    }


def dominated(costs: Mapping[str, Mapping[str, float | None]], method: str, control: str) -> bool:
    """Say whether the control costs no more than a method on every axis."""
    own, other = costs.get(method, {}), costs.get(control, {})
    if not own or not other:
        return False
    pairs = [(own.get(axis), other.get(axis)) for axis in other]
    return all(a is not None and b is not None and b <= a * (1 + COST_TIE) for a, b in pairs)


def _verdict(
    standing: Standing,
    place: int,
    kept: int,
    numbers: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, float | None]],
    control: str,
) -> tuple[bool, str]:
    if standing.losses is None:
        return False, "it has no validation loss"
    if place > kept:
        return False, f"setting {place} of {numbers['of']} by validation loss; {kept} go on"
    within, level = numbers.get("p_within"), numbers.get("level")
    if within is None or level is None or within >= level:
        return True, f"setting {place} of {numbers['of']} by validation loss"
    if not dominated(costs, standing.method, control):
        return True, "worse than the control, but it costs less somewhere"
    return False, (
        f"the method is worse than the control by {numbers['difference']:.3g} nats (chance of "
        f"ending within the margin {within:.1g}, level {level:.1g}) and costs no less anywhere"
    )


def _ranked(standings: Sequence[Standing], method: str) -> list[Standing]:
    own = [s for s in standings if s.method == method]
    return sorted(own, key=lambda s: (s.mean, s.learning_rate, s.trial_id))
