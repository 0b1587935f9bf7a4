"""Verdicts: is each contender better than, equivalent to or worse than the control?

Intervals and adjusted p values are simultaneous over all contenders (single-step max-T, Westfall
and Young 1993). The bootstrap gives the joint distribution of the contenders' deviations in
standard errors. The 95 % point of the largest absolute one is the critical normal score c, and
each contender's interval is ``estimate +- half_width(c)`` under its own error distribution. So high
seed variance widens only that contender's interval, and correlated contenders need a smaller
multiplicity correction than independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from scipy import special

from bakeoff.analysis.bootstrap import (
    DRAWS,
    Effect,
    Scores,
    bootstrap,
    difference_effect,
    mean_effect,
    pool_seed_noise,
    standardised_deviations,
    variance_components,
)
from bakeoff.analysis.error_distribution import FloatArray, half_width, z_score
from bakeoff.analysis.power import StudyDesign, items_needed, seeds_needed

ALPHA = 0.05
# Differences this close to a bound count as equal to it: sums round differently across machines.
TIE = 1e-12


class Verdict(StrEnum):
    """Outcome of the comparison of a method with the control."""

    CONTROL = "control"
    BETTER = "better"
    EQUIVALENT = "equivalent"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    NONE = "none"


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval in the metric's unit; bounds are None where unknown."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Comparison of one contender with the control; ``difference`` is method - control.

    ``p_adjusted`` tests the hypothesis of no difference (single-step max-T over the contenders:
    below 5 % exactly where the interval excludes 0), ``p_equivalence`` that of a difference of at
    least the margin (Holm over the contenders). ``n_seeds`` counts the seeds compared.
    ``items_needed`` and ``seeds_needed`` estimate how many items, or seeds, would settle an
    inconclusive verdict. They are None where no number would, where seed noise is unknown, and
    where the verdict is settled.

    The rest is known in rounds only. ``look`` (from 1) is the one that closed the contender, or the
    last one, and ``replicates`` are those of it. ``items_share`` is the part of the variance that
    the items give and no replicate reduces, ``floor`` the half width at infinitely many replicates.
    ``reason`` is what limits an inconclusive contender: ``items``, ``seeds`` or ``time``.
    ``exploratory`` is the verdict of a further look (``--again``) at the level of the study, where
    it differs.
    """

    difference: Interval
    p_value: float
    p_adjusted: float
    p_equivalence: float
    verdict: Verdict
    n_seeds: int
    seed_noise_known: bool
    items_needed: int | None = None
    seeds_needed: int | None = None
    replicates: int | None = None
    look: int | None = None
    items_share: float | None = None
    floor: float | None = None
    reason: str | None = None
    exploratory: Verdict | None = None


class _TestResults(NamedTuple):
    """Test results of all contenders, each ``[contenders]``."""

    half_widths: FloatArray
    p_values: FloatArray
    adjusted: FloatArray
    equivalence: FloatArray


def compare(
    contenders: Mapping[str, Scores],
    control: Scores,
    *,
    margin: float,
    better: str,
    rng: np.random.Generator,
    draws: int = DRAWS,
    needs: bool = True,
) -> dict[str, Comparison]:
    """Compare every contender with the control, paired by item and seed.

    ``better`` is ``higher`` or ``lower`` and only affects the verdict. Equivalence takes two
    one-sided tests at the margin, so it may hold together with a small significant difference;
    equivalence then wins, because smaller differences than the margin do not matter to the user.
    ``needs`` False skips ``items_needed`` and ``seeds_needed``, which dominate the run time of a
    simulation of many studies.
    """
    if not contenders:
        return {}
    effects = pool_seed_noise([difference_effect(s, control) for s in contenders.values()])
    tests = _test_contenders(effects, margin, standardised_deviations(effects, rng, draws))
    comparisons = {}
    for i, (method, effect) in enumerate(zip(contenders, effects, strict=True)):
        half, adjusted, equivalence = (
            float(x[i]) for x in (tests.half_widths, tests.adjusted, tests.equivalence)
        )
        verdict = decide_verdict(effect.estimate, adjusted, equivalence, better)
        is_open = needs and verdict is Verdict.INCONCLUSIVE
        needed = _sample_size_needed(effect, margin, len(effects)) if is_open else _SampleSizes()
        comparisons[method] = Comparison(
            Interval(effect.estimate, effect.estimate - half, effect.estimate + half),
            p_value=float(tests.p_values[i]),
            p_adjusted=adjusted,
            p_equivalence=equivalence,
            verdict=verdict,
            n_seeds=effect.n_seeds,
            seed_noise_known=effect.seed_noise_known,
            items_needed=needed.items,
            seeds_needed=needed.seeds,
        )
    return comparisons


def estimate_scores(
    scores: Mapping[str, Scores],
    rng: np.random.Generator,
    *,
    low: float | None = None,
    high: float | None = None,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """Estimate every method's mean score with a 95 % interval over seeds and items.

    ``low`` and ``high`` are the metric's range; intervals are clipped to it.
    """
    if not scores:
        return {}
    effects = pool_seed_noise([mean_effect(s) for s in scores.values()])
    drawn = np.clip(bootstrap(effects, rng, draws), low, high)
    return {
        method: _percentile_interval(effect.estimate, row, 1 - ALPHA)
        for method, effect, row in zip(scores, effects, drawn, strict=True)
    }


class _SampleSizes(NamedTuple):
    items: int | None = None
    seeds: int | None = None


def _test_contenders(effects: Sequence[Effect], margin: float, joint: FloatArray) -> _TestResults:
    """Test all contenders; ``joint`` is ``[contenders, draws]``, deviations in standard errors."""
    error = variance_components(effects)
    distance = np.abs([e.estimate for e in effects])
    scores = z_score(np.where(distance > TIE, distance, 0.0), error)
    # max-T: the distribution of the largest absolute deviation under no difference at all
    largest = np.sort(np.abs(joint).max(axis=0))
    return _TestResults(
        half_widths=half_width(_critical_value(largest), error),
        p_values=np.maximum(2 * special.ndtr(-scores), 1 / (1 + largest.size)),
        adjusted=_adjusted_p_values(scores, largest),
        equivalence=holm(_equivalence_p_values(effects, margin, largest.size)),
    )


def _critical_value(largest: FloatArray) -> float:
    """Return the score above which the adjusted p value is at most alpha."""
    allowed = max(0, math.floor(ALPHA * (largest.size + 1)) - 1)
    return float(largest[largest.size - 1 - allowed])


def _adjusted_p_values(scores: FloatArray, largest: FloatArray) -> FloatArray:
    """Return adjusted p values: ``(1 + #{draws: max |T| >= score}) / (1 + #draws)``.

    ``largest`` is sorted. The added 1 keeps p above 0.
    """
    hits = largest.size - np.searchsorted(largest, scores, side="left")
    return np.asarray((1 + hits) / (1 + largest.size))


def _equivalence_p_values(effects: Sequence[Effect], margin: float, draws: int) -> FloatArray:
    """Return each effect's p value of the two one-sided tests at the margin (TOST).

    The larger of the two is the p value of their intersection (Schuirmann 1987). It has the same
    lower bound as a p value from ``draws`` bootstrap draws, so it is never 0.
    """
    error = variance_components(effects)
    least = np.array([least_binary_variance(margin, e) for e in effects])
    # Where hardly any item differs, the observed variance is smaller than it would be at a true
    # difference of the margin.
    error = error._replace(items=np.maximum(error.items, least - error.seeds))
    gap = margin - np.abs([e.estimate for e in effects])
    score = z_score(np.where(np.abs(gap) > TIE, np.abs(gap), 0.0), error)
    p_values = special.ndtr(np.where(gap > 0, -score, score))
    # identical on every item: equivalent at any margin, even 0
    same = np.array([e.standard_error == 0 and abs(e.estimate) <= TIE for e in effects])
    return np.maximum(np.where(same, 0.0, p_values), 1 / (1 + draws))


def least_binary_variance(margin: float, effect: Effect) -> float:
    """Return the least variance of a mean of -1, 0, 1 that equals the margin; 0 if not binary.

    The few items that differ say little about how much groups differ, so that of grouped items
    takes the correlation that plans assume.
    """
    return margin * max(0.0, 1 - margin) / effect.effective_items if effect.binary else 0.0


def _sample_size_needed(effect: Effect, margin: float, n_contenders: int) -> _SampleSizes:
    """Return how many items, or seeds, would settle the verdict at the observed effect and noise.

    Each is the smaller of the numbers that show the difference and that show equivalence, with
    80 % power.
    """
    difference, design = abs(effect.estimate), _design_from_effect(effect, n_contenders)
    least = math.sqrt(least_binary_variance(margin, effect) * effect.n_items)
    at_margin = replace(design, item_sd=max(design.item_sd, least))
    items = [items_needed(design, difference), items_needed(at_margin, difference, margin)]
    seeds: list[int | None] = [None]
    if effect.seed_noise_known:
        seeds = [seeds_needed(design, difference), seeds_needed(at_margin, difference, margin)]
    return _SampleSizes(
        _smallest_above(items, effect.n_items), _smallest_above(seeds, effect.n_seeds)
    )


def _design_from_effect(effect: Effect, n_contenders: int) -> StudyDesign:
    """Return the study's design with the noise estimated from this effect."""
    noise = sum(s.noise for s in effect.seeds)
    return StudyDesign(
        n_items=effect.n_items,
        n_seeds=effect.n_seeds,
        n_contenders=n_contenders,
        item_sd=math.sqrt(max(0.0, effect.item_variance - noise) * effect.n_items),
        seed_sd=math.sqrt(effect.seed_variance * effect.n_seeds / 2),
        rest_sd=math.sqrt(noise * effect.n_items * effect.n_seeds),
    )


def _smallest_above(numbers: Sequence[int | None], present: int) -> int | None:
    # the present number did not settle the verdict, so more are needed
    return min((max(n, present + 1) for n in numbers if n is not None), default=None)


def holm(p_values: FloatArray) -> FloatArray:
    """Return p values adjusted by Holm's method."""
    # imported here: it takes 0.7 s, and no command needs it for a study in rounds
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p_values, alpha=ALPHA, method="holm")[1], dtype=np.float64)


def _percentile_interval(estimate: float, draws: FloatArray, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def decide_verdict(
    estimate: float, p_difference: float, p_equivalence: float, better: str
) -> Verdict:
    """Return the verdict on a difference from its two adjusted p values."""
    if p_equivalence <= ALPHA:
        return Verdict.EQUIVALENT
    if p_difference > ALPHA:
        return Verdict.INCONCLUSIVE
    return Verdict.BETTER if (estimate > 0) == (better == "higher") else Verdict.WORSE
