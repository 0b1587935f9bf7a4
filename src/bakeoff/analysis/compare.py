"""Verdicts: is each contender better, equivalent or worse than the control, beyond chance?

Stands after ``bootstrap`` in analysis: scores in, one Comparison per contender out. Intervals are
simultaneous over all contenders (Bonferroni), p values adjusted over them (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from statsmodels.stats.multitest import multipletests

from bakeoff.analysis.bootstrap import (
    DRAWS,
    FloatArray,
    Scores,
    bootstrap,
    difference_effect,
    mean_effect,
    pool_seed_noise,
)

ALPHA = 0.05
# Draws this close to a bound lie on it: matrix products round differently from machine to machine.
TIE = 1e-12


class Verdict(StrEnum):
    """What the evidence says of a method, read against the control."""

    CONTROL = "control"
    BETTER = "better"
    EQUIVALENT = "equivalent"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    NONE = "none"


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval around it, in the metric's unit."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One contender against the control; ``difference`` is raw method - control.

    ``p_adjusted`` tests for no difference, ``p_equivalence`` for a difference of the margin or
    more; both are Holm-adjusted over the contenders. ``n_seeds`` counts the seeds compared.
    """

    difference: Interval
    p_value: float
    p_adjusted: float
    p_equivalence: float
    verdict: Verdict
    n_seeds: int
    seed_noise_known: bool


def compare(
    contenders: Mapping[str, Scores],
    control: Scores,
    *,
    margin: float,
    better: str,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Comparison]:
    """Compare every contender with the control, paired by item and seed.

    ``better`` is ``higher`` or ``lower`` and only turns the verdict. Equivalent takes two one-sided
    tests at the margin, so it may hold beside a small difference that is beyond chance; it then
    wins, because the user asked for differences of the margin.
    """
    if not contenders:
        return {}
    effects = pool_seed_noise([difference_effect(s, control) for s in contenders.values()])
    drawn = bootstrap(effects, rng, draws)
    p_values = np.array([_two_sided(row) for row in drawn])
    adjusted = _holm(p_values)
    # the larger of the two one-sided p values is the p value of their intersection; Holm over it
    # is never laxer than Holm over each side
    equivalence = _holm(np.array([_outside_margin(row, margin) for row in drawn]))
    level = 1 - ALPHA / len(effects)
    found = {}
    for i, (method, effect) in enumerate(zip(contenders, effects, strict=True)):
        found[method] = Comparison(
            difference=_interval(effect.estimate, drawn[i], level),
            p_value=float(p_values[i]),
            p_adjusted=float(adjusted[i]),
            p_equivalence=float(equivalence[i]),
            verdict=_verdict(effect.estimate, adjusted[i], equivalence[i], better),
            n_seeds=effect.n_seeds,
            seed_noise_known=effect.seed_noise_known,
        )
    return found


def estimate_scores(
    scores: Mapping[str, Scores],
    rng: np.random.Generator,
    *,
    low: float | None = None,
    high: float | None = None,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """Estimate every method's mean score with a 95 % interval over seeds and items.

    ``low`` and ``high`` are the metric's range; an interval never leaves it.
    """
    if not scores:
        return {}
    effects = [mean_effect(s) for s in scores.values()]
    drawn = np.clip(bootstrap(effects, rng, draws), low, high)
    return {
        method: _interval(effect.estimate, row, 1 - ALPHA)
        for method, effect, row in zip(scores, effects, drawn, strict=True)
    }


def _two_sided(draws: FloatArray) -> float:
    """Return the p value of no difference; the draws count one more so that it is never 0."""
    below, above = _share(draws <= TIE), _share(draws >= -TIE)
    return min(1.0, 2 * min(below, above))


def _outside_margin(draws: FloatArray, margin: float) -> float:
    """Return the larger p value of the two one-sided tests at the margin."""
    if not np.abs(draws).max() > TIE:
        return 1 / (1 + draws.size)  # item by item the same: equivalent at any margin, even 0
    return max(_share(draws <= TIE - margin), _share(draws >= margin - TIE))


def _share(hits: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    return (1 + int(hits.sum())) / (1 + hits.size)


def _holm(p_values: FloatArray) -> FloatArray:
    return np.asarray(multipletests(p_values, alpha=ALPHA, method="holm")[1], dtype=np.float64)


def _interval(estimate: float, draws: FloatArray, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def _verdict(estimate: float, p_difference: float, p_equivalence: float, better: str) -> Verdict:
    if p_equivalence <= ALPHA:
        return Verdict.EQUIVALENT
    if p_difference >= ALPHA:
        return Verdict.INCONCLUSIVE
    return Verdict.BETTER if (estimate > 0) == (better == "higher") else Verdict.WORSE
