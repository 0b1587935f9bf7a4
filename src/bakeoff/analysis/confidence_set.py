"""The methods that may be the best, and the probability that one method beats another.

Both come from joint draws of the methods' scores (``pareto.draw_scores``), which are paired by item
and replicate as in the verdicts. Unlike the verdicts they compare all methods with one another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bakeoff.analysis.compare import TIE
from bakeoff.analysis.error_distribution import FloatArray

LEVEL = 0.95
"""Probability that the set holds the best method."""
# Quantiles one standard deviation of a normal distribution below and above its median.
ONE_BELOW, ONE_ABOVE = 0.158655, 0.841345


def confidence_set(
    draws: Mapping[str, FloatArray], *, better: str, level: float = LEVEL
) -> tuple[str, ...]:
    """Return the methods that may be the best at a confidence level, in the order of ``draws``.

    The model confidence set (Hansen, Lunde and Nason 2011, https://doi.org/10.3982/ECTA5771): while
    the largest studentised distance of a method below the mean of those left is larger than chance
    would make it if all were equal, that method is eliminated. Scales are quantiles, because draws
    with few replicates have heavy tails. ``draws`` are ``[draws]`` each; ``better`` is ``higher``
    or ``lower``.
    """
    left = sorted(draws)  # sums in a fixed order: the same set whatever the order of the methods
    while len(left) > 1:
        worst, p_value = _worst(np.stack([draws[method] for method in left]), better)
        if p_value >= 1 - level:
            break
        del left[worst]
    return tuple(method for method in draws if method in left)


def better_probabilities(
    draws: Mapping[str, FloatArray], *, better: str
) -> dict[str, dict[str, float]]:
    """Return the share of draws in which a method scores better than another, ties by halves."""
    sign = 1.0 if better == "higher" else -1.0
    return {
        one: {
            other: _share_above(sign * (draws[one] - draws[other]))
            for other in draws
            if other != one
        }
        for one in draws
    }


def _worst(scores: FloatArray, better: str) -> tuple[int, float]:
    """Return the method farthest below the mean, and the p value that it is not, if all are equal.

    ``scores`` is ``[methods, draws]``.
    """
    below = scores.mean(axis=0) - scores if better == "higher" else scores - scores.mean(axis=0)
    low, distance, high = np.quantile(below, [ONE_BELOW, 0.5, ONE_ABOVE], axis=1)
    distance = np.where(np.abs(distance) > TIE, distance, 0.0)
    scale = (high - low) / 2
    exact = scale <= TIE
    scale = np.where(exact, 1.0, scale)
    # without any variance a distance is certain
    statistic = np.where(exact, np.where(distance > 0, np.inf, 0.0), distance / scale)
    by_chance = ((below - distance[:, None]) / scale[:, None]).max(axis=0)
    worst = int(np.argmax(statistic))
    return worst, float(np.mean(by_chance >= statistic[worst]))


def _share_above(differences: FloatArray) -> float:
    above, tied = differences > TIE, np.abs(differences) <= TIE
    return float(above.mean() + tied.mean() / 2)
