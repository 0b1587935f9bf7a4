"""Statistical power: what a study can show before it runs, and what would settle its verdict.

The inputs are numbers of items, seeds and contenders and their noise; no scores are needed. Power
is computed for the verdict's own procedure: its interval is integrated over what the seeds may
show. A known variance would promise up to 20 points of power more at three seeds.

Units: differences and SDs are in the metric's unit (0.01 is one point of an accuracy).
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
# In published per-item results, 10 to 25 % of the items of a binary metric are right with one
# method and wrong with the other; this is the middle.
PUBLISHED_DISCORDANCE = 0.175
ITEM_SD = math.sqrt(PUBLISHED_DISCORDANCE)
# The SD of one method's score over its seeds is 0.40 points (tuned, arXiv 2602.04998, 57 cells) to
# 0.74 (reruns of PEFT's method_comparison); this is the middle.
SEED_SD = 0.0057
# The search for a number ends here: the answer is then that no number settles the verdict.
MAX_ITEMS = 10_000_000
MAX_SEEDS = 10_000
# Integration points over what the seeds may show: so many equally likely values of the variance
# that all contenders share and of one contender's own; a single contender has one factor only.
SINGLE_CASES, SHARED_CASES, OWN_CASES = 40, 8, 6


@dataclass(frozen=True)
class StudyDesign:
    """Size and noise of a study.

    ``item_sd`` is the SD over items of a contender's difference to the control, as far as it is the
    same at every seed; ``rest_sd`` is the SD of what varies by item and seed. With ``rest_sd`` 0
    all item noise counts as constant over seeds, the conservative reading of a discordance at one
    seed. ``seed_sd`` is the SD of one method's score over seeds, without the items' noise.
    ``design_effect`` is what groups of items multiply the items' variances by, and ``item_df`` the
    degrees of freedom of the items' variance, n - 1 if None.
    """

    n_items: int
    n_seeds: int
    n_contenders: int
    item_sd: float = ITEM_SD
    seed_sd: float = SEED_SD
    rest_sd: float = 0.0
    design_effect: float = 1.0
    item_df: float | None = None

    @property
    def item_variance(self) -> float:
        """The variance of the difference that the items give it at any number of seeds."""
        return self.item_sd**2 * self.design_effect / self.n_items

    @property
    def between_seed_variance(self) -> float:
        """The variance that the seeds of two methods give their difference."""
        return 2 * self.seed_sd**2 / self.n_seeds

    @property
    def rest_variance(self) -> float:
        """The variance of the difference that is independent at every item and seed."""
        return self.rest_sd**2 * self.design_effect / (self.n_items * self.n_seeds)

    @property
    def standard_error(self) -> float:
        """The true standard error of a difference."""
        return math.sqrt(self.item_variance + self.rest_variance + self.between_seed_variance)


def detectable_difference(design: StudyDesign, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest true difference that gets a better or worse verdict with this power."""
    widths = likely_half_widths(design, dunnett_critical(design.n_contenders, alpha))
    scale = design.standard_error
    if scale == 0:
        return 0.0
    most = float(widths.max()) + 10 * scale
    return float(optimize.brentq(lambda d: share_beyond(d, widths, scale) - power, 0.0, most))


def power_of_difference(design: StudyDesign, true_difference: float, alpha: float = 0.05) -> float:
    """Return the probability that the interval of a difference excludes 0, on the right side."""
    widths = likely_half_widths(design, dunnett_critical(design.n_contenders, alpha))
    return share_beyond(abs(true_difference), widths, design.standard_error)


def power_of_equivalence(
    design: StudyDesign, true_difference: float, margin: float, alpha: float = 0.05
) -> float:
    """Return the probability that both one-sided margin tests reject, at Holm's first step."""
    critical = -float(special.ndtri(alpha / design.n_contenders))
    widths = likely_half_widths(design, critical)
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

    A difference is settled when it is significant or, with a ``margin``, when equivalence is shown.
    The search starts at the design's number of items, so the answer is never smaller.
    """
    return smallest_sufficient(
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
    return smallest_sufficient(
        lambda n: _power(replace(design, n_seeds=n), true_difference, margin, alpha) >= power,
        design.n_seeds,
        MAX_SEEDS,
    )


@lru_cache(maxsize=256)
def dunnett_critical(n_contenders: int, alpha: float = 0.05) -> float:
    """Return Dunnett's two-sided critical value for differences to one control, known variances.

    With k contenders it is the c that solves ``E_u[ P(|sqrt(1 - r) e + sqrt(r) u| <= c)^k ] = 1 -
    alpha`` for independent normal e and u, because differences to one control correlate at r = 1/2
    (Dunnett 1955, https://doi.org/10.1080/01621459.1955.10501294). The expectation over u, the
    control's deviation, is a Gauss-Hermite sum.
    """
    if n_contenders == 1:
        return -float(special.ndtri(alpha / 2))
    nodes, weights = _gauss_hermite()
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


def share_beyond(difference: float, widths: FloatArray, scale: float) -> float:
    """Return the probability that an estimate with standard error ``scale`` exceeds its width."""
    if scale == 0:
        return float(difference > 0)
    return float(np.mean(special.ndtr((difference - widths) / scale)))


def likely_half_widths(design: StudyDesign, critical: float) -> FloatArray:
    """Return the half widths of the verdict's interval in equally likely cases, ``[cases]``.

    With several contenders the cases are ``[SHARED_CASES, OWN_CASES]``, flattened.
    """
    items = design.item_variance + design.rest_variance
    if design.n_seeds == 1:  # the verdict cannot see the between-seed variance, though there is one
        return half_width(
            critical, _variance_components(design, np.array([items]), np.zeros(1), np.ones(1))
        )
    variance, pool, gain = _likely_seed_variances(design)
    raised = np.maximum(variance, pool)
    uncertain = uncertain_variance(raised, np.full_like(raised, design.rest_variance))
    pooled = uncertain_variance(pool, np.full_like(raised, design.rest_variance))
    df = pooled_df(uncertain, pooled, design.n_seeds - 1, gain)
    certain = np.maximum(items + raised - uncertain, 0.0)
    return half_width(critical, _variance_components(design, certain, uncertain, df))


def _variance_components(
    design: StudyDesign, items: FloatArray, seeds: FloatArray, df: FloatArray
) -> VarianceComponents:
    item_df = max(design.n_items - 1, 1) if design.item_df is None else design.item_df
    return VarianceComponents(items, np.full_like(items, item_df), seeds, df)


def _likely_seed_variances(design: StudyDesign) -> tuple[FloatArray, FloatArray, float]:
    """Return the between-seed variances that a study may observe, ``[cases]`` each, and the gain.

    The first is that of one contender, the second the mean over contenders (the pool), and the gain
    is the pool's relative precision. The pool varies with the number of seeds and contenders; the
    remaining variation of a contender's own variance is independent of it.
    """
    gain = pooling_gain(design.n_contenders, SHARED_WITH_CONTROL)
    df = design.n_seeds - 1
    if design.n_contenders == 1:
        shared, own = _chi_squared_quantiles(df, SINGLE_CASES)[:, None], np.ones((1, 1))
    else:
        remaining = (gain - 1) * 2 / (df * gain + 2)  # relative variance
        shared = _chi_squared_quantiles(df * gain, SHARED_CASES)[:, None]
        own = _chi_squared_quantiles(2 / remaining, OWN_CASES)[None]
    observed = (design.between_seed_variance + design.rest_variance) * shared * own
    variance = np.maximum(0.0, observed - design.rest_variance)
    pool = np.broadcast_to(variance.mean(axis=1, keepdims=True), variance.shape)
    return variance.ravel(), pool.ravel(), gain


def _chi_squared_quantiles(df: float, cases: int) -> FloatArray:
    """Return equally likely values of chi-squared over its degrees of freedom, with mean 1."""
    middles = (np.arange(cases) + 0.5) / cases
    values = special.chdtri(df, 1 - middles)
    return np.asarray(values / values.mean())


def smallest_sufficient(settled: Callable[[int], bool], start: int, most: int) -> int | None:
    """Return the smallest number from ``start`` up that settles, by doubling, then bisection."""
    if not settled(most):
        return None
    low, high = start - 1, start
    while not settled(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


@lru_cache(maxsize=1)
def _gauss_hermite() -> tuple[FloatArray, FloatArray]:
    """Return the nodes and weights of an expectation over a normal variable, to be normalised."""
    return np.polynomial.hermite_e.hermegauss(128)
