"""Racing by successive halving: which trials of a replicate continue after a rung.

Settings race inside a replicate: of a method's trials at one seed, those with the lowest mean
validation loss continue. A rung counts once the control has begun to learn, else it moves. A
contender stops as a whole, from the second rung on, only if it is forecast to be worse than the
control beyond the margin and its costs cannot put it on the Pareto front. The control never stops.
Every decision comes with its numbers. docs/race.md has the rules, the origin of the constants and
the simulations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.pareto import COST_TIE

KEEP = (2,)
"""Settings of a replicate that continue after the first, second, ... rung; the last one repeats."""
KEEP_UNRIPE = 3
"""Settings that continue after a first rung that is taken although it is not ripe."""
RIPE_FALL = 0.10
"""Share of its loss at step 0 that the control must have lost for a rung to count ..."""
RIPE_Z = 5.0
"""... or the paired standard errors by which it must be better than at step 0 ..."""
RIPE_Z_STEP = 20
"""... from this step on: a small fall can be certain long before it says which rate is best. On the
demo at step 6 the loss has fallen by 7 %, which is 10 standard errors, and the two settings that
lead there are often not the best ones at step 60."""
LAST_RIPE = 3
"""The first rung moves at most to the steps divided by this."""
ALPHA = 0.05
"""Probability that the race stops any contender that would have ended within the margin."""
MARGIN = 0.02
"""Share of the control's loss by which a contender may be worse and still continue."""
DRIFT = 0.04
"""Standard deviation of the change in the difference to the control over the whole budget, as a
share of the control's loss; at a rung it is scaled by the remaining share of the budget."""
SHORT_STEPS = 200
"""Below as many steps ``DRIFT_SHORT`` replaces ``DRIFT``."""
DRIFT_SHORT = 0.10
"""In studies of 60 steps the difference moved by 5 to 8 % from steps 10-30 to the end."""
FIRST_STOP = 1
"""First rung (from 0) at which a method may stop as a whole: before it slow starters look bad."""

Costs = Mapping[str, Mapping[str, float | None]]
"""Cost by method and axis; lower is better, None if not measured."""
Losses = NDArray[np.float64]
"""Validation losses in nats, ``[items]`` unless the text says otherwise."""


@dataclass(frozen=True)
class Rules:
    """Parameters of a race: ``rungs`` are steps, ``steps`` is the whole budget.

    ``rounds`` is the largest number of rounds: each is a further race of new replicates.
    """

    rungs: tuple[int, ...]
    steps: int
    contenders: int
    keep: tuple[int, ...] = KEEP
    rounds: int = 1
    alpha: float = ALPHA
    margin: float = MARGIN
    drift: float | None = None
    first_stop: int = FIRST_STOP

    @property
    def drift_share(self) -> float:
        """The drift over the whole budget; without ``drift`` that of the number of steps."""
        if self.drift is not None:
            return self.drift
        return DRIFT_SHORT if self.steps < SHORT_STEPS else DRIFT

    @property
    def level(self) -> float:
        """The error level of one test: alpha over rungs, rounds and contenders (Bonferroni)."""
        tests = max(1, len(self.rungs) - self.first_stop) * self.rounds
        return self.alpha / (tests * max(1, self.contenders))

    def kept(self, rung: int) -> int:
        """Return how many settings of a replicate continue after rung number ``rung``."""
        return self.keep[min(rung, len(self.keep) - 1)]

    def between_contenders(self) -> Rules:
        """Return the rules for the comparison of two contenders.

        Both drift, so their variances add up. Each of the other contenders is a further test, so
        the level is divided by their number once more.
        """
        shared = self.alpha / max(1, self.contenders)
        return replace(self, drift=self.drift_share * math.sqrt(2), alpha=shared)


@dataclass(frozen=True, eq=False)
class RungStanding:
    """A trial at a rung: ``losses`` is ``[items]`` in nats, None if it diverged or failed."""

    trial_id: str
    method: str
    seed: int
    learning_rate: float
    losses: Losses | None
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
class RipeDecision:
    """Decision whether a rung counts.

    ``fall`` is the share of its loss at step 0 that the control has lost; ``z`` is the same fall in
    paired standard errors. None if it cannot be computed.
    """

    ripe: bool
    fall: float | None
    z: float | None


@dataclass(frozen=True)
class Forecast:
    """A contender's forecast difference to the control, and the method that dominates it."""

    numbers: dict[str, float] | None = None
    dominated_by: str | None = None

    @property
    def worse(self) -> bool:
        """Whether it is significantly worse than the control beyond the margin."""
        return self.numbers is not None and self.numbers["p_within"] < self.numbers["level"]


def rung_candidates(first: int, steps: int, second: int | None = None) -> tuple[int, ...]:
    """Return the steps at which the first rung may be taken, in order.

    These are ``first``, twice, four times ... as many steps up to a third of the budget, and that
    third. A ``second`` rung stays where it is, so only steps before it count. A first rung beyond a
    third of the budget does not move.
    """
    last = steps // LAST_RIPE
    candidates = [first]
    while candidates[-1] < last:
        candidates.append(min(2 * candidates[-1], last))
    return tuple(c for c in candidates if c == first or second is None or c < second)


def is_ripe(control: Losses, start: Losses, step: int) -> RipeDecision:
    """Return whether the control has learned enough for a rung at ``step`` to count.

    ``control`` has the losses of its leading setting at the rung and ``start`` those at step 0,
    both ``[items]``, or ``[replicates, items]`` to be averaged over replicates. The rung counts if
    the mean loss has fallen by ``RIPE_FALL``. From ``RIPE_Z_STEP`` on it also counts if the loss
    has fallen by ``RIPE_Z`` standard errors of the differences by item: bases that start with a low
    loss never lose much of it. Without replicates it does not count.
    """
    if control.size == 0:
        return RipeDecision(False, None, None)
    before, after = (np.atleast_2d(losses).mean(axis=0) for losses in (start, control))
    differences = before - after
    fall = float(differences.mean() / before.mean()) if before.mean() > 0 else None
    spread = float(differences.std(ddof=1)) if differences.size > 1 else 0.0
    z = float(differences.mean()) / (spread / math.sqrt(differences.size)) if spread > 0 else None
    certain = step >= RIPE_Z_STEP and z is not None and z >= RIPE_Z
    ripe = certain or (fall is not None and fall >= RIPE_FALL)
    return RipeDecision(ripe, fall, z)


def keep_at_rungs(keep: Sequence[int], ripe: bool) -> tuple[int, ...]:
    """Return how many settings continue after each rung, given whether the first one is ripe."""
    return tuple(keep) if ripe else (max(KEEP_UNRIPE, keep[0]), *(keep[1:] or keep))


def leading_losses(standings: Iterable[RungStanding], method: str) -> dict[int, Losses]:
    """Return the losses of a method's best setting by seed; seeds without a loss are left out."""
    by_seed: dict[int, list[RungStanding]] = {}
    for standing in standings:
        if standing.method == method:
            by_seed.setdefault(standing.seed, []).append(standing)
    leaders = {seed: _rank_settings(settings)[0].losses for seed, settings in by_seed.items()}
    return {seed: losses for seed, losses in leaders.items() if losses is not None}


def choose_finalist(standings: Sequence[RungStanding]) -> str | None:
    """Return the trial of a replicate that is scored on test, from its standings at the end.

    ``standings`` are those of one method at one seed. The lowest validation loss counts (or score,
    where there is one); ties go to the lower loss, then to the lower rate. None if all diverged.
    """
    scored = [s for s in standings if s.losses is not None]
    return _rank_settings(scored)[0].trial_id if scored else None


def decide_rung(
    standings: Sequence[RungStanding], control: str, costs: Costs, rung: int, rules: Rules
) -> tuple[Decision, ...]:
    """Return a decision on every trial at rung number ``rung`` (from 0), in the order given.

    Settings are ranked among the trials of one method and seed. A method with an unmeasured cost
    may be on the front, so it continues.
    """
    replicates: dict[tuple[str, int], list[RungStanding]] = {}
    for standing in standings:
        replicates.setdefault((standing.method, standing.seed), []).append(standing)
    ranked = {key: _rank_settings(settings) for key, settings in replicates.items()}
    methods = dict.fromkeys(s.method for s in standings)
    leaders = {method: leading_losses(standings, method) for method in methods}
    forecasts = {
        method: _forecast_method(method, leaders, control, costs, rung, rules) for method in methods
    }
    decisions = []
    for standing in standings:
        settings = ranked[standing.method, standing.seed]
        place, forecast = settings.index(standing) + 1, forecasts[standing.method]
        decisions.append(_build_decision(standing, place, len(settings), forecast, rung, rules))
    return tuple(decisions)


def forecast_difference(
    contender: Mapping[int, Losses], control: Mapping[int, Losses], rung: int, rules: Rules
) -> dict[str, float] | None:
    """Return the difference to the control and the probability that it ends within the margin.

    Both give the losses of the best setting by seed, and are averaged over the seeds that both
    have. With d the differences by item and s = 1 - rung / steps the remaining share of the budget,

        standard_error^2 = sd(d)^2 / n + (drift * control's mean loss * s)^2
        p_within = Phi((margin - mean(d)) / standard_error)

    in nats: the difference at the end is taken as the present one plus independent noise of the
    items and of the rest of the training. ``level`` is the bound that ``p_within`` must fall below.
    None without a shared seed or with fewer than two items.
    """
    shared = [seed for seed in contender if seed in control]
    if not shared or control[shared[0]].size < 2:
        return None
    mine, theirs = (np.mean([losses[s] for s in shared], axis=0) for losses in (contender, control))
    differences, scale = mine - theirs, float(theirs.mean())
    items = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    left = 1 - rules.rungs[rung] / rules.steps
    error = math.hypot(items, rules.drift_share * scale * left)
    margin = rules.margin * scale
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
    leaders: Mapping[str, Mapping[int, Losses]],
    control: str,
    costs: Costs,
    rung: int,
    rules: Rules,
) -> Forecast:
    if method == control or control not in leaders:
        return Forecast()
    forecast = Forecast(forecast_difference(leaders[method], leaders[control], rung, rules))
    if not forecast.worse or rung < rules.first_stop:
        return forecast
    better = _better_methods(method, leaders, control, rung, rules)
    dominating = next((rival for rival in better if is_dominated(costs, method, rival)), None)
    return Forecast(forecast.numbers, dominating)


def _better_methods(
    method: str,
    leaders: Mapping[str, Mapping[int, Losses]],
    control: str,
    rung: int,
    rules: Rules,
) -> Iterator[str]:
    """Yield the control, then the other methods that are significantly better, best first."""
    yield control
    stricter = rules.between_contenders()
    pairs = []
    for rival in leaders:
        numbers = forecast_difference(leaders[method], leaders[rival], rung, stricter)
        if numbers is not None and Forecast(numbers).worse:
            pairs.append((-numbers["difference"], rival))
    yield from (rival for _, rival in sorted(pairs))


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
    goes_on, reason = _decide_trial(standing, place, of, rules.kept(rung), forecast)
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


def _rank_settings(settings: Iterable[RungStanding]) -> list[RungStanding]:
    return sorted(settings, key=lambda s: (s.rank, s.mean, s.learning_rate, s.trial_id))
