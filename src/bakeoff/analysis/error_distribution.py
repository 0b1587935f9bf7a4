"""Reference distribution of a difference: normal item error plus Student-t seed error.

The variance of a mean over seeds and items has two parts. The item part comes from hundreds of
items and is known well; the seed part comes from two to five seeds and may be far off. Adding a
normal deviate and an independent t deviate is the Behrens-Fisher problem (Fisher 1935,
https://doi.org/10.1111/j.1469-1809.1935.tb02120.x).

All results are on the normal scale: a score of 1.96 is as extreme as 1.96 standard errors of a
normal distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]

# Beyond this Student's t is the normal distribution for every purpose here.
MAX_DF = 1e6
# Points of the integral over the seeds' chi-squared; p = 1e-4 is then right to 0.2 % at one degree
# of freedom and to 2e-5 at two (against scipy's t).
QUADRATURE_NODES = 48
NEWTON_STEPS = 12
# Two differences to one control share half of their variance, so their sample variances correlate
# at a quarter.
SHARED_WITH_CONTROL = 0.5


class VarianceComponents(NamedTuple):
    """Variance of means, each field ``[means]``: two components and their degrees of freedom."""

    items: FloatArray
    item_df: FloatArray
    seeds: FloatArray
    seed_df: FloatArray

    @property
    def variance(self) -> FloatArray:
        """The total variance of the mean."""
        return self.items + self.seeds


def z_score(distance: FloatArray, error: VarianceComponents) -> FloatArray:
    """Return the normal score of a distance (>= 0) from the true value, ``[means]``."""
    exact = error.variance <= 0
    safe = error._replace(items=np.where(exact, 1.0, error.items))
    score = _normal_score(distance, safe, *_variances_at_nodes(safe))[0]
    return np.where(exact, np.where(distance > 0, np.inf, 0.0), score)


def half_width(score: float, error: VarianceComponents) -> FloatArray:
    """Return the distance that has this normal score: half the width of an interval, ``[means]``.

    The inverse of ``z_score``, by Newton's method.
    """
    exact = error.variance <= 0
    safe = error._replace(items=np.where(exact, 1.0, error.items))
    mixture = _variances_at_nodes(safe)
    distance = score * np.sqrt(safe.variance)
    # Heavy tails make the score a concave function of the distance, so Newton's method approaches
    # the solution from below and cannot overshoot.
    for _ in range(NEWTON_STEPS):
        current, slope = _normal_score(distance, safe, *mixture)
        step = (score - current) / slope
        distance = distance + step
        if np.all(np.abs(step) <= 1e-13 * distance):
            break
    return np.where(exact, 0.0, distance)


def uncertain_variance(between_seeds: FloatArray, item_noise: FloatArray) -> FloatArray:
    """Return the part of ``between_seeds + item_noise`` that is known from few seeds only.

    With b the between-seed variance and n the items' noise in the seed means, the part is
    ``b (b + 2 n) / (b + n)``. Seed means vary by both, but the items tell n as well: where b
    dominates, all of it is as uncertain as the seeds, and where b is 0, nothing is. In simulation
    counting only b gave 5.4 % false verdicts for one contender at 3 seeds, and counting all of
    b + n lost a third of the power where seeds hardly matter.
    """
    total = np.asarray(between_seeds + item_noise)
    part = between_seeds * (between_seeds + 2 * item_noise)
    return np.asarray(part / np.where(total > 0, total, 1.0))


def pooling_gain(n_pooled: int, control_share: float) -> float:
    """Return the precision of the mean of ``n_pooled`` seed variances, relative to a single one.

    The variances correlate at ``control_share**2``, because all differences share one control.
    """
    return n_pooled / (1 + (n_pooled - 1) * control_share**2)


def pooled_df(
    variance: FloatArray, pool: FloatArray, df: FloatArray | float, gain: float
) -> FloatArray:
    """Return the degrees of freedom of a variance that was raised to at least the pool's.

    Welch-Satterthwaite for the sum of two parts: ``pool``, which has ``gain`` times the ``df`` of
    one set of seeds, and what ``variance`` has above it, which has ``df``.
    """
    terms = (pool**2 / gain + (variance - pool) ** 2) / df
    combined = variance**2 / np.where(terms > 0, terms, 1.0)
    return np.asarray(np.where(terms > 0, combined, df))


def _normal_score(
    distance: FloatArray, error: VarianceComponents, scaled: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the normal score of a distance and the score's derivative, both ``[means]``.

    Given the seeds' chi-squared X on s degrees of freedom, the difference is a t deviate with
    variance ``V(X) = items + seeds * s / X``. The tail probability is the integral over X,

        P(D > d) = E_X[ Phi(-t(d / sqrt(V(X)))) ],

    a weighted sum over the nodes of ``_variances_at_nodes``; t maps a t deviate to the normal one
    with the same tail. The score is ``-Phi^-1(P)``, its derivative follows by the chain rule.
    """
    # Satterthwaite (1946, https://doi.org/10.2307/3002019): only the items' share of the variance
    # is as uncertain as the items' degrees of freedom say
    share = np.maximum(error.items[:, None] / scaled, 1e-3)
    df = error.item_df[:, None] / share**2
    deviate, slope = _t_to_normal(distance[:, None] / np.sqrt(scaled), df)
    tail = np.sum(weights * special.ndtr(-deviate), axis=1)
    score = -special.ndtri(tail)
    density = np.sum(weights * _normal_density(deviate) * slope / np.sqrt(scaled), axis=1)
    return np.asarray(score), density / np.maximum(_normal_density(score), 1e-300)


def _variances_at_nodes(error: VarianceComponents) -> tuple[FloatArray, FloatArray]:
    """Return the variances given the seeds' chi-squared, and their weights, ``[means, nodes]``."""
    df = error.seed_df[:, None]
    # Equal steps in log X between the extreme quantiles: there the density is smooth and falls to
    # zero at both ends, so that the trapezoidal rule needs few nodes.
    lowest, highest = np.log(special.chdtri(df, [[1 - 1e-13, 1e-13]])).T
    log_x = np.linspace(lowest, highest, QUADRATURE_NODES, axis=1)
    log_density = df / 2 * log_x - np.exp(log_x) / 2
    weights = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    seeds = error.seeds[:, None] * df / np.exp(log_x)
    return error.items[:, None] + seeds, weights / weights.sum(axis=1, keepdims=True)


def _t_to_normal(deviate: FloatArray, df: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the normal deviate with the tail of a t deviate, and its derivative.

    ``z = (8 v + 1) / (8 v + 3) * sqrt(v log(1 + t^2 / v))``, right to 0.01 from 10 degrees of
    freedom up (Wallace 1959, https://doi.org/10.1214/aoms/1177706093). With fewer, as few groups of
    items have, it is too small, which is conservative: by 0.03 at 3 and 0.11 at 1 for z = 1.96.
    """
    df = np.minimum(df, MAX_DF)
    factor = (8 * df + 1) / (8 * df + 3)
    ratio = deviate**2 / df
    normal = factor * np.sqrt(df * np.log1p(ratio))
    slope = factor**2 * deviate / ((1 + ratio) * np.where(normal > 0, normal, 1.0))
    return normal, np.where(normal > 0, slope, factor)


def _normal_density(deviate: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-(deviate**2) / 2) / np.sqrt(2 * np.pi))
