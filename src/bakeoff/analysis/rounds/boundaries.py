"""Critical values of repeated looks: alpha spent on an information clock, O'Brien-Fleming style.

A look at k of at most J replicates tests a difference whose variance is lambda + 1/S_k, in units of
one replicate's variance; ``lambda`` is the items' part, which no replicate reduces. The information
time is the share of the final precision, t_k = (lambda + 1/S_J) / (lambda + 1/S_k). Up to t_k the
looks may have spent alpha(t) = 2 - 2 Phi(z_{alpha/2} / sqrt(t)) (Lan and DeMets 1983,
https://doi.org/10.1093/biomet/70.3.659, which behaves like the boundary of O'Brien and Fleming),
and the critical value of a look is the one that the statistics pass there for the first time with
the probability that the look adds.

That probability is exact for one statistic (recursive numerical integration, Armitage, McPherson
and Rowe 1969, https://doi.org/10.2307/2343787), and a share of fixed-seed draws for the largest of
several contenders' statistics, which share the control's part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from bakeoff.analysis.error_distribution import FloatArray
from bakeoff.analysis.power import dunnett_critical

MAX_CLOCK = 25.0
"""Beyond this, replicates add no information: 16 instead of 5 narrow an interval by 0.3 %."""
LEAST_ALPHA = 1e-10
"""A look that would spend less spends nothing."""
NOTHING_SPENT = math.inf
"""Critical value of a look that spends nothing."""
CHUNK, CACHED_CHUNKS = 8192, 25
"""Draws in a chunk, and the chunks kept: 200,000 draws, 53 MB with 12 contenders and 5 looks."""
Float32Array = NDArray[np.float32]
# A grid reaches this many standard deviations where no boundary limits it.
REACH = 8.5
# The interval in which a critical value is sought.
LOWEST, HIGHEST = -8.0, 12.0


class Crossing(Protocol):
    """The statistics of planned looks, under no difference, as far as they determine boundaries."""

    def critical(self, previous: Sequence[float], probability: float) -> float:
        """Return the value that look ``len(previous) + 1`` passes first with ``probability``."""
        ...


def information_times(clock: float, replicates: Sequence[int]) -> tuple[float, ...]:
    """Return the share of the final precision at each planned look; the last one's is 1."""
    variances = _variances(clock, replicates)
    return tuple(float(variances[-1] / v) for v in variances)


def spent_alpha(time: float, alpha: float) -> float:
    """Return how much of ``alpha`` may be spent up to an information time (0 to 1)."""
    if time >= 1:
        return alpha
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(time)))


def extend_boundary(
    crossing: Crossing, previous: Sequence[float], spent: float, time: float, alpha: float
) -> tuple[float, float]:
    """Return the next look's critical value and the alpha spent after it.

    ``previous`` are the earlier looks' critical values as they were used, ``spent`` what they
    spent. Where the clock has moved back, nothing is spent and nothing passes.
    """
    total = spent_alpha(time, alpha)
    if total - spent <= LEAST_ALPHA:
        return NOTHING_SPENT, spent
    return crossing.critical(previous, total - spent), total


def boundary(
    crossings: Sequence[Crossing], times: Sequence[float], alpha: float
) -> tuple[float, ...]:
    """Return the critical values of all looks, each from its own crossing and information time."""
    return complete_boundary(crossings, times, alpha, (), 0.0)


def complete_boundary(
    crossings: Sequence[Crossing],
    times: Sequence[float],
    alpha: float,
    previous: Sequence[float],
    spent: float,
) -> tuple[float, ...]:
    """Return the critical values of all looks, the first of which are ``previous``."""
    values = list(previous)
    for crossing, time in list(zip(crossings, times, strict=True))[len(values) :]:
        value, spent = extend_boundary(crossing, values, spent, time, alpha)
        values.append(value)
    return tuple(values)


class ExactCrossing:
    """The crossing of a single normal statistic, one- or two-sided, by numerical integration.

    The statistic at look k is B(I_k) / sqrt(I_k), with B a Brownian motion and I_k the information.
    The density of B over the paths that have not passed is held on Gauss-Legendre nodes.
    """

    def __init__(self, clock: float, replicates: Sequence[int], *, two_sided: bool) -> None:
        self._information = 1 / _variances(clock, replicates)
        self._two_sided = two_sided

    def critical(self, previous: Sequence[float], probability: float) -> float:
        """Return the value that look ``len(previous) + 1`` passes first with ``probability``."""
        look = len(previous)
        if look == 0:
            tail = probability / 2 if self._two_sided else probability
            return -float(special.ndtri(tail))
        nodes, mass = self._density(previous)
        scale = math.sqrt(self._information[look] - self._information[look - 1])
        root = math.sqrt(self._information[look])

        def excess(critical: float) -> float:
            passed = special.ndtr((nodes - critical * root) / scale)
            if self._two_sided:
                passed = passed + special.ndtr((-critical * root - nodes) / scale)
            return float(mass @ passed) - probability

        lowest = 0.0 if self._two_sided else LOWEST
        if excess(lowest) <= 0:
            return lowest
        return float(optimize.brentq(excess, lowest, HIGHEST, xtol=1e-10))

    def _density(self, previous: Sequence[float]) -> tuple[FloatArray, FloatArray]:
        """Return nodes and the probabilities at them of the paths within all earlier boundaries."""
        steps = np.sqrt(np.diff(self._information, prepend=0.0))
        nodes, mass = np.zeros(1), np.ones(1)
        for look, critical in enumerate(previous):
            root = math.sqrt(self._information[look])
            high = min(critical, REACH) * root
            low = -high if self._two_sided else -REACH * root
            # narrower than the narrower of the two normal densities that meet here
            count = _node_count((high - low) / min(steps[look], steps[look + 1]))
            unit, weights = _legendre(count)
            reached = low + (high - low) * unit
            density = np.exp(-(((reached[:, None] - nodes) / steps[look]) ** 2) / 2) @ mass
            density *= (high - low) / (steps[look] * math.sqrt(2 * math.pi))
            nodes, mass = reached, weights * density
        return nodes, mass


class DrawnCrossing:
    """The crossing of the largest of several two-sided statistics, by fixed-seed draws.

    Contender m's statistic at look k is (W_m - W_0)(I_k) / sqrt(2 I_k) with independent Brownian
    motions W; W_0 is the control's. The first look needs no draws: its value is Dunnett's.
    """

    def __init__(
        self, clock: float, replicates: Sequence[int], n_contenders: int, draws: int, seed: int
    ) -> None:
        self._information = 1 / _variances(clock, replicates)
        self._n_contenders = n_contenders
        self._draws, self._seed = draws, seed

    def critical(self, previous: Sequence[float], probability: float) -> float:
        """Return the value that look ``len(previous) + 1`` passes first with ``probability``."""
        look = len(previous)
        allowed = math.floor(probability * self._draws)
        if look == 0 or allowed == 0:
            # too rare for the draws: as if no earlier look had taken any of it (conservative)
            return dunnett_critical(self._n_contenders, probability)
        within = np.ones(self._draws, dtype=np.bool_)
        for largest, critical in zip(self._largest, previous, strict=False):
            within &= largest <= critical
        values = self._largest[look][within]
        if allowed >= values.size:
            return 0.0
        place = values.size - 1 - allowed
        return float(np.partition(values, place)[place])

    @cached_property
    def _largest(self) -> FloatArray:
        """The largest absolute statistic, ``[looks, draws]``."""
        steps = np.sqrt(np.diff(self._information, prepend=0.0))
        out = np.empty((steps.size, self._draws))
        for start in range(0, self._draws, CHUNK):
            stop = min(start + CHUNK, self._draws)
            increments = _normals(self._seed, start, steps.size, self._n_contenders)
            motion = np.zeros(increments.shape[1:])
            for look, step in enumerate(steps):
                motion += step * increments[look].astype(np.float64)
                largest = np.abs(motion[1:] - motion[0]).max(axis=0)
                out[look, start:stop] = largest[: stop - start]
        out /= np.sqrt(2 * self._information)[:, None]
        return out


def difference_crossing(
    clock: float, replicates: Sequence[int], n_contenders: int, draws: int, seed: int
) -> Crossing:
    """Return the crossing of the two-sided tests of all contenders against the control."""
    if n_contenders == 1:
        return ExactCrossing(clock, replicates, two_sided=True)
    return DrawnCrossing(clock, replicates, n_contenders, draws, seed)


def _variances(clock: float, replicates: Sequence[int]) -> FloatArray:
    return np.asarray(min(clock, MAX_CLOCK) + 1 / np.asarray(replicates, dtype=np.float64))


# The looks of a study differ in how much they weight the same increments.
@lru_cache(maxsize=CACHED_CHUNKS)
def _normals(seed: int, start: int, n_looks: int, n_contenders: int) -> Float32Array:
    """Draw the motions' standard increments, ``[looks, 1 + contenders, CHUNK]``."""
    rng = np.random.default_rng([seed, start])
    return rng.standard_normal((n_looks, 1 + n_contenders, CHUNK), dtype=np.float32)


def _node_count(width: float) -> int:
    """Return the number of nodes for a region that is so many standard deviations wide."""
    return 32 * math.ceil((24 + 2 * width) / 32)


@lru_cache(maxsize=64)
def _legendre(count: int) -> tuple[FloatArray, FloatArray]:
    """Return Gauss-Legendre nodes and weights on 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2
