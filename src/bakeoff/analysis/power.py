"""What a study can show before it runs, and what an inconclusive one would still need.

Stands between ``reference`` and ``compare`` in analysis, and needs no scores: numbers of items,
seeds and contenders and how noisy they are go in, a chance or a number comes out. The verdict's own
procedure is integrated over what the seeds may happen to show, so a promise is one of *this*
verdict: at three seeds a known variance would promise up to 20 points of power more.

Units: differences and SDs in the metric's unit (0.01 is one point of an accuracy).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from bakeoff.analysis.error_distribution import (
    SHARED_WITH_CONTROL,
    FloatArray,
    VarianceComponents,
    half_width,
    pooled_df,
    pooling_gain,
    uncertain_variance,
)

POWER = 0.8
# Usual in published per-item results: of the items of a binary metric, 10 to 25 % are right with
# one method and wrong with the other; this is the middle.
PUBLISHED_DISCORDANCE = 0.175
ITEM_SD = math.sqrt(PUBLISHED_DISCORDANCE)
# The SD of one method's score over its seeds: 0.40 points (tuned, arXiv 2602.04998, 57 cells) to
# 0.74 (reruns of PEFT's method_comparison); this is the middle.
SEED_SD = 0.0057
# Beyond these nobody goes on: the answer is then that no number settles it.
MAX_ITEMS = 10_000_000
MAX_SEEDS = 10_000
# What the seeds may show is cut into this many equally likely cases: all contenders together, and
# one of them apart from the others; a lone contender has nobody to be apart from.
SINGLE_CASES, SHARED_CASES, OWN_CASES = 40, 8, 6


@dataclass(frozen=True)
class StudyDesign:
    """A study as its noise sees it.

    ``item_sd`` is the SD over items of a contender's difference to the control where it stays the
    same at every seed, ``rest_sd`` of what each seed adds to it anew; with ``rest_sd`` 0 all of it
    counts as staying, which is the cautious reading of a discordance at one seed. ``seed_sd`` is
    the SD of one method's score over seeds, the items' noise left out.
    """

    n_items: int
    n_seeds: int
    n_contenders: int
    item_sd: float = ITEM_SD
    seed_sd: float = SEED_SD
    rest_sd: float = 0.0

    @property
    def luck(self) -> float:
        """The variance that two methods' seeds give their difference."""
        return 2 * self.seed_sd**2 / self.n_seeds

    @property
    def noise(self) -> float:
        """The variance of the difference that is new at every item and seed."""
        return self.rest_sd**2 / (self.n_items * self.n_seeds)

    @property
    def standard_error(self) -> float:
        """The true standard error of a difference."""
        return math.sqrt(self.item_sd**2 / self.n_items + self.noise + self.luck)


def detectable_difference(design: StudyDesign, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest true difference that is called better or worse with this power."""
    widths = _half_widths(design, dunnett_critical(design.n_contenders, alpha))
    scale = design.standard_error
    if scale == 0:
        return 0.0
    most = float(widths.max()) + 10 * scale
    found = optimize.brentq(lambda d: _power_at(d, widths, scale) - power, 0.0, most)
    return float(found)


def power_of_difference(design: StudyDesign, true_difference: float, alpha: float = 0.05) -> float:
    """Return the chance that the interval around a difference leaves 0 out, on the right side."""
    widths = _half_widths(design, dunnett_critical(design.n_contenders, alpha))
    return _power_at(abs(true_difference), widths, design.standard_error)


def power_of_equivalence(
    design: StudyDesign, true_difference: float, margin: float, alpha: float = 0.05
) -> float:
    """Return the chance that both one-sided tests at the margin reject, at Holm's first step."""
    critical = -float(special.ndtri(alpha / design.n_contenders))
    widths = _half_widths(design, critical)
    scale = design.standard_error
    if scale == 0:
        return float(abs(true_difference) < margin)
    below = special.ndtr((margin - widths - true_difference) / scale)
    above = special.ndtr((widths - margin - true_difference) / scale)
    return float(np.mean(np.maximum(0.0, below - above)))


def items_needed(
    design: StudyDesign,
    true_difference: float,
    margin: float | None = None,
    alpha: float = 0.05,
    power: float = POWER,
) -> int | None:
    """Return how many items settle a true difference at the design's seeds; None if none do.

    Settled is a difference beyond chance or, with a ``margin``, equivalence. The design's own
    number of items is where the search starts: fewer are never the answer.
    """
    return _smallest_sufficient(
        lambda n: _power(replace(design, n_items=n), true_difference, margin, alpha) >= power,
        design.n_items,
        MAX_ITEMS,
    )


def seeds_needed(
    design: StudyDesign,
    true_difference: float,
    margin: float | None = None,
    alpha: float = 0.05,
    power: float = POWER,
) -> int | None:
    """Return how many seeds settle a true difference at the design's items; None if none do."""
    return _smallest_sufficient(
        lambda n: _power(replace(design, n_seeds=n), true_difference, margin, alpha) >= power,
        design.n_seeds,
        MAX_SEEDS,
    )


@lru_cache(maxsize=256)
def dunnett_critical(n_contenders: int, alpha: float = 0.05) -> float:
    """Return the two-sided critical normal score of the largest of many differences to one control.

    Dunnett's, for known variances: differences to one control correlate at a half.
    """
    if n_contenders == 1:
        return -float(special.ndtri(alpha / 2))
    nodes, weights = np.polynomial.hermite_e.hermegauss(128)
    spread = math.sqrt(1 - SHARED_WITH_CONTROL)

    def excess(critical: float) -> float:
        shift = math.sqrt(SHARED_WITH_CONTROL) * nodes
        inside = special.ndtr((critical - shift) / spread)
        inside -= special.ndtr((-critical - shift) / spread)
        return float(weights @ inside**n_contenders / weights.sum()) - (1 - alpha)

    return float(optimize.brentq(excess, 0.0, 10.0))


def _power(
    design: StudyDesign, true_difference: float, margin: float | None, alpha: float
) -> float:
    if margin is None:
        return power_of_difference(design, true_difference, alpha)
    return power_of_equivalence(design, true_difference, margin, alpha)


def _power_at(difference: float, widths: FloatArray, scale: float) -> float:
    if scale == 0:
        return float(difference > 0)
    return float(np.mean(special.ndtr((difference - widths) / scale)))


def _half_widths(design: StudyDesign, critical: float) -> FloatArray:
    """Return half the width of the verdict's interval in equally likely cases."""
    items = design.item_sd**2 / design.n_items + design.noise
    if design.n_seeds == 1:  # the verdict then knows of no luck, though there is some
        return half_width(
            critical, _variance_components(design, np.array([items]), np.zeros(1), np.ones(1))
        )
    own, pool, gain = _likely_seed_variances(design)
    luck = np.maximum(own, pool)
    uncertain = uncertain_variance(luck, np.full_like(luck, design.noise))
    pooled = uncertain_variance(pool, np.full_like(luck, design.noise))
    known = pooled_df(uncertain, pooled, design.n_seeds - 1, gain)
    certain = np.maximum(items + luck - uncertain, 0.0)
    return half_width(critical, _variance_components(design, certain, uncertain, known))


def _variance_components(
    design: StudyDesign, items: FloatArray, seeds: FloatArray, freedom: FloatArray
) -> VarianceComponents:
    return VarianceComponents(
        items, np.full_like(items, max(design.n_items - 1, 1)), seeds, freedom
    )


def _likely_seed_variances(design: StudyDesign) -> tuple[FloatArray, FloatArray, float]:
    """Return what the seeds may show of their luck: one's own, the contenders' mean, its gain.

    What all contenders show together varies as the pool does; around it, each has what is left of
    the variation of its own seeds.
    """
    gain = pooling_gain(design.n_contenders, SHARED_WITH_CONTROL)
    freedom = design.n_seeds - 1
    if design.n_contenders == 1:
        together, apart = _chi_squared_quantiles(freedom, SINGLE_CASES)[:, None], np.ones((1, 1))
    else:
        left = (gain - 1) * 2 / (freedom * gain + 2)  # relative variance
        together = _chi_squared_quantiles(freedom * gain, SHARED_CASES)[:, None]
        apart = _chi_squared_quantiles(2 / left, OWN_CASES)[None]
    shown = (design.luck + design.noise) * together * apart
    own = np.maximum(0.0, shown - design.noise)
    pool = np.broadcast_to(own.mean(axis=1, keepdims=True), own.shape)
    return own.ravel(), pool.ravel(), gain


def _chi_squared_quantiles(freedom: float, cases: int) -> FloatArray:
    """Return equally likely values of chi-squared over its degrees of freedom, with mean 1."""
    middles = (np.arange(cases) + 0.5) / cases
    values = special.chdtri(freedom, 1 - middles)
    return np.asarray(values / values.mean())


def _smallest_sufficient(settled: Callable[[int], bool], start: int, most: int) -> int | None:
    """Return the smallest number from ``start`` on that settles, by doubling, then halving."""
    if not settled(most):
        return None
    low, high = start - 1, start
    while not settled(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high
