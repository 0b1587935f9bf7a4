"""A contender's difference at a look: its variance, pooled over contenders, and the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bakeoff.analysis.bootstrap import Effect
from bakeoff.analysis.compare import TIE, least_binary_variance
from bakeoff.analysis.error_distribution import (
    SHARED_WITH_CONTROL,
    VarianceComponents,
    half_width,
    pooled_df,
    pooling_gain,
    uncertain_variance,
    z_score,
)
from bakeoff.analysis.rounds.boundaries import MAX_CLOCK
from bakeoff.analysis.rounds.look import VarianceParts
from bakeoff.analysis.rounds.plan import CLOCK_SHARE


class Noise(Protocol):
    """The variance of a mean difference over ``n_seeds`` replicates, before pooling."""

    @property
    def item_variance(self) -> float:
        """The items' part, with their noise at each replicate."""
        ...

    @property
    def noise(self) -> float:
        """The items' noise in the mean, which more replicates reduce."""
        ...

    @property
    def seed_variance(self) -> float:
        """The between-replicate part."""
        ...

    @property
    def n_seeds(self) -> int:
        """The number of replicates."""
        ...


@dataclass(frozen=True)
class Pool:
    """The mean over contenders of the between-replicate variance of one replicate.

    ``df`` are its degrees of freedom.
    """

    variance: float
    df: float


@dataclass(frozen=True)
class Difference(VarianceParts):
    """A contender's mean difference at a look, with its variance after pooling.

    ``pooled_variance`` is the between-replicate part of the variance of the mean, ``seed_df`` the
    degrees of freedom of its uncertain part. ``least_variance`` is the least items' variance that
    a difference of the margin would have; ``identical`` means that no item differs.
    """

    estimate: float
    item_variance: float
    noise: float
    seed_variance: float
    pooled_variance: float
    seed_df: float
    item_df: float
    n_seeds: int
    n_items: int
    least_variance: float

    @property
    def seed_noise_known(self) -> bool:
        """Whether there are replicates to compare; else the error covers the items only."""
        return self.n_seeds > 1

    def z(self) -> float:
        """Return the normal score of the difference."""
        distance = abs(self.estimate)
        return _z(distance if distance > TIE else 0.0, self._error(0.0))

    def z_equivalence(self, margin: float) -> float:
        """Return the normal score of the distance to the nearer margin, below 0 beyond it."""
        error = self._error(self.least_variance)
        gap = margin - abs(self.estimate)
        if self._identical():
            return math.inf  # equivalent at any margin, even 0
        score = _z(abs(gap) if abs(gap) > TIE else 0.0, error)
        return score if gap > 0 else -score

    def half_width(self, critical: float) -> float:
        """Return half the width of the interval at a critical value."""
        return float(half_width(critical, self._error(0.0))[0])

    def variance_at(self, n_seeds: int) -> float:
        """Return the variance that the mean would have with another number of replicates."""
        return self.stable_variance + self.replicate_variance / n_seeds

    def error_at(
        self, n_items: int, n_seeds: int, *, at_margin: bool = False
    ) -> VarianceComponents:
        """Return the error that the study would have at other numbers of items and replicates.

        ``at_margin`` takes the items' variance that a difference of the margin has at least.
        """
        items, seeds = self.n_items / n_items, self.n_seeds / n_seeds
        noise, between = self.noise * items * seeds, self.pooled_variance * seeds
        stable = self.stable_variance * items
        if at_margin:
            stable = max(stable, self.least_variance * items - noise)
        total = stable + noise + between
        uncertain = min(total, float(uncertain_variance(np.array(between), np.array(noise))))
        df = self.seed_df * max(n_seeds - 1, 1) / max(self.n_seeds - 1, 1)
        return _components(total - uncertain, self.item_df / items, uncertain, df)

    def _identical(self) -> bool:
        no_variance = self.item_variance + self.seed_variance <= 0
        return no_variance and abs(self.estimate) <= TIE

    def _error(self, least: float) -> VarianceComponents:
        total = self.item_variance + self.pooled_variance
        parts = np.array(self.pooled_variance), np.array(self.noise)
        uncertain = min(total, float(uncertain_variance(*parts)))
        items = max(total - uncertain, least - uncertain)
        return _components(items, self.item_df, uncertain, self.seed_df)


def pool_noise(contenders: Iterable[Noise]) -> Pool | None:
    """Return the pool of the contenders with several replicates and any variance; None if none do.

    Sums are exact, so that the order of the contenders does not matter.
    """
    pooled = [c for c in contenders if _is_pooled(c)]
    if not pooled:
        return None
    count = len(pooled)
    variance = math.fsum(c.seed_variance * c.n_seeds for c in pooled) / count
    typical_df = count / math.fsum(1 / (c.n_seeds - 1) for c in pooled)
    return Pool(variance, pooling_gain(count, SHARED_WITH_CONTROL) * typical_df)


def pooled_difference(effect: Effect, pool: Pool | None, margin: float) -> Difference:
    """Return an effect's difference with a between-replicate variance of at least the pool's."""
    seeds = effect.seeds[0]
    variance, df = seeds.variance, seeds.df
    own = _EffectNoise(effect.item_variance, seeds.noise, seeds.variance, effect.n_seeds)
    if pool is not None and _is_pooled(own):
        floor = pool.variance / effect.n_seeds
        variance = max(variance, floor)
        noise = np.array(seeds.noise)
        uncertain = uncertain_variance(np.array(variance), noise)
        of_pool = uncertain_variance(np.array(floor), noise)
        df = float(pooled_df(uncertain, of_pool, seeds.df, pool.df / seeds.df))
    return Difference(
        estimate=effect.estimate,
        item_variance=effect.item_variance,
        noise=seeds.noise,
        seed_variance=seeds.variance,
        pooled_variance=variance,
        seed_df=df,
        item_df=effect.item_df,
        n_seeds=effect.n_seeds,
        n_items=effect.n_items,
        least_variance=least_binary_variance(margin, effect),
    )


def information_clock(contenders: Iterable[Noise], pool: Pool | None) -> float:
    """Return lambda: the items' stable variance, in units of one replicate's variance, halved.

    It is the mean over the contenders of the pool; 0 without a pool.
    """
    ratios = []
    for own in contenders:
        if pool is not None and _is_pooled(own):
            between = max(own.seed_variance * own.n_seeds, pool.variance)
            replicate = between + own.noise * own.n_seeds
            stable = max(0.0, own.item_variance - own.noise)
            ratios.append(stable / replicate if replicate > 0 else math.inf)
    clock = CLOCK_SHARE * math.fsum(ratios) / len(ratios) if ratios else 0.0
    return min(clock, MAX_CLOCK)


@dataclass(frozen=True)
class _EffectNoise:
    item_variance: float
    noise: float
    seed_variance: float
    n_seeds: int


def effect_noise(effect: Effect) -> Noise:
    """Return the noise of a paired effect."""
    seeds = effect.seeds[0]
    return _EffectNoise(effect.item_variance, seeds.noise, seeds.variance, effect.n_seeds)


def _is_pooled(noise: Noise) -> bool:
    return noise.n_seeds > 1 and noise.item_variance + noise.seed_variance > 0


def _components(items: float, item_df: float, seeds: float, seed_df: float) -> VarianceComponents:
    return VarianceComponents(*(np.array([x]) for x in (items, item_df, seeds, seed_df)))


def _z(distance: float, error: VarianceComponents) -> float:
    return float(z_score(np.array([distance]), error)[0])
