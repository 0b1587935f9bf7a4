"""The hierarchical paired bootstrap: resample items, and seeds, of a mean of scores.

Stands early in analysis: per-item test scores come in as ``[seeds, items]`` matrices; out go
effects (a mean, or the mean difference between two methods, with its error) and draws of them.

A matrix splits into mean + seed deviation + item deviation + rest. Items are resampled, the same
ones for all effects. Seeds are not: there are 2 to 5 of them, resampling them understates their
variance by (S-1)/S and gives a handful of values without tails. Their part is drawn from
Student's t:

- its variance is that of the seed means, less what the items' noise (rest / items) adds to them,
  which the item deviations carry too (Owen 2007, arXiv 0712.1111), never below zero;
- three seeds can agree by luck, so no method's seed variance goes below the methods' mean
  (``pool_seed_noise``), which also makes it more certain;
- its degrees of freedom are the seeds' less one, more where pooled (``reference``).

``benchmarks/verdict.py`` measures how well the verdicts built on it keep their promises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from bakeoff.analysis.error_distribution import (
    MAX_DF,
    SHARED_WITH_CONTROL,
    FloatArray,
    VarianceComponents,
    pooled_df,
    pooling_gain,
    uncertain_variance,
)
from bakeoff.core.errors import BakeoffError

DRAWS = 10_000
# Indices held at once: a chunk then takes about 100 MB.
CHUNK_INDICES = 4_000_000


@dataclass(frozen=True)
class Scores:
    """The scores of one method: ``values`` is ``[seeds, items]``, its rows named by ``seeds``."""

    seeds: tuple[int, ...]
    values: FloatArray

    def __post_init__(self) -> None:
        fits = self.values.ndim == 2 and self.values.shape[0] == len(self.seeds) > 0
        if not fits or self.values.shape[1] == 0 or not np.isfinite(self.values).all():
            raise BakeoffError(
                "scores-shape",
                f"Scores of shape {self.values.shape} for {len(self.seeds)} seeds are empty, "
                "ragged or not finite.",
                "pass one row of finite scores per seed.",
            )


@dataclass(frozen=True)
class SeedNoise:
    """What one set of seeds adds to the variance of an effect.

    ``variance`` is the luck of the seeds in the mean over them, ``noise`` what the items' noise
    adds to the variance of the seed means; ``freedom`` tells how sure ``uncertain`` is.
    ``control_share`` of the luck is the control's, and so shared by all its contenders.
    """

    count: int
    variance: float
    noise: float
    df: float
    control_share: float

    @property
    def known(self) -> bool:
        """Tell whether there are seeds enough to see any noise."""
        return self.count > 1

    @property
    def uncertain(self) -> float:
        """The variance that is known from these few seeds only."""
        return float(uncertain_variance(np.array(self.variance), np.array(self.noise)))


@dataclass(frozen=True)
class Effect:
    """A mean over seeds and items, split into what the bootstrap draws.

    ``item_deviations`` is ``[items]``, corrected. ``seeds`` has two sets when the seeds of a
    difference are not paired, else one. ``binary``: all scores behind it are 0 or 1.
    """

    estimate: float
    item_deviations: FloatArray
    seeds: tuple[SeedNoise, ...]
    n_seeds: int
    binary: bool

    @property
    def n_items(self) -> int:
        """How many items it is a mean over."""
        return self.item_deviations.size

    @property
    def item_variance(self) -> float:
        """The variance of the mean that comes from the items, their noise at each seed included."""
        return float(np.mean(self.item_deviations**2)) / self.n_items

    @property
    def seed_variance(self) -> float:
        """The variance of the mean that comes from the luck of the seeds."""
        return sum(s.variance for s in self.seeds)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over seeds and items."""
        return float(np.sqrt(self.item_variance + self.seed_variance))

    @property
    def uncertain_variance(self) -> float:
        """The part of the variance that is known from few seeds only."""
        total = self.item_variance + self.seed_variance
        return min(total, sum(s.uncertain for s in self.seeds))

    @property
    def seed_df(self) -> float:
        """Satterthwaite's degrees of freedom of ``uncertain_variance``."""
        terms = sum(s.uncertain**2 / s.df for s in self.seeds)
        total = sum(s.uncertain for s in self.seeds)
        return total**2 / terms if terms > 0 else MAX_DF

    @property
    def seed_noise_known(self) -> bool:
        """False when some set has a single seed: the error is then of the items alone."""
        return all(s.known for s in self.seeds)


def variance_components(effects: Sequence[Effect]) -> VarianceComponents:
    """Return the errors of effects as the reference distribution takes them."""
    uncertain = np.array([e.uncertain_variance for e in effects])
    variance = np.array([e.item_variance + e.seed_variance for e in effects])
    return VarianceComponents(
        items=variance - uncertain,
        item_df=np.array([max(e.n_items - 1.0, 1.0) for e in effects]),
        seeds=uncertain,
        seed_df=np.array([e.seed_df for e in effects]),
    )


def mean_effect(scores: Scores) -> Effect:
    """Split a method's mean score into what the bootstrap draws."""
    return _split_effect([scores.values], [0.0], len(scores.seeds), _is_binary(scores))


def difference_effect(method: Scores, control: Scores) -> Effect:
    """Split the mean of method - control, paired by item and by seed.

    A seed fixes the data order, so equal seeds are paired; seeds that only one side has are left
    out. Without a common seed all are used, each side's seeds on their own.
    """
    if method.values.shape[1] != control.values.shape[1]:
        raise BakeoffError(
            "scores-items",
            f"{method.values.shape[1]} items cannot be paired with {control.values.shape[1]}.",
            "score every method on the same items.",
        )
    binary = _is_binary(method) and _is_binary(control)
    common = [s for s in method.seeds if s in control.seeds]
    if not common:
        n_seeds = min(len(method.seeds), len(control.seeds))
        return _split_effect([method.values, -control.values], [0.0, 1.0], n_seeds, binary)
    rows = [method.seeds.index(s) for s in common]
    control_rows = [control.seeds.index(s) for s in common]
    paired = method.values[rows] - control.values[control_rows]
    return _split_effect([paired], [SHARED_WITH_CONTROL], len(common), binary)


def pool_seed_noise(effects: Sequence[Effect]) -> list[Effect]:
    """Raise each seed variance to at least the mean of all.

    Three seeds often agree by luck; taken at their word in ten contenders, one of them then looks
    significant. Left as they are: unpaired or single seeds, and effects that never vary.
    """
    pooled = [e for e in effects if len(e.seeds) == 1 and e.seed_noise_known and _varies(e)]
    if not pooled:
        return list(effects)
    # per seed, as contenders may have lost some
    mean = float(np.mean([e.seeds[0].variance * e.n_seeds for e in pooled]))
    gain = pooling_gain(len(pooled), pooled[0].seeds[0].control_share)
    chosen = {id(e) for e in pooled}
    return [
        _raise_seed_variance(e, mean / e.n_seeds, gain) if id(e) in chosen else e for e in effects
    ]


def bootstrap(
    effects: Sequence[Effect], rng: np.random.Generator, draws: int = DRAWS
) -> FloatArray:
    """Draw from the sampling distribution of every effect's mean, ``[effects, draws]``.

    All effects must have the same items; they share the resampled items and their control's luck.
    """
    items, seeds = _draw_deviations(effects, rng, draws)
    scale_uniforms = rng.random(draws)
    out = np.empty((len(effects), draws))
    for row, effect in enumerate(effects):
        scale = _t_scale(effect.seed_df, scale_uniforms)
        uncertain = effect.uncertain_variance
        certain = effect.item_variance + effect.seed_variance - uncertain
        drawn = items[row] * np.sqrt(certain) + seeds[row] * scale * np.sqrt(uncertain)
        out[row] = effect.estimate + drawn
    return out


def standardised_deviations(
    effects: Sequence[Effect], rng: np.random.Generator, draws: int = DRAWS
) -> FloatArray:
    """Draw the joint deviations of all effects in standard errors, ``[effects, draws]``.

    No t here: how uncertain each effect's standard error is, ``reference`` knows; these tell how
    the effects hang together. An effect that never varies is 0 throughout.
    """
    items, seeds = _draw_deviations(effects, rng, draws)
    parts = np.array([[e.item_variance, e.seed_variance] for e in effects]).T
    total = parts.sum(axis=0)
    shares = np.sqrt(parts / np.where(total > 0, total, 1.0))
    return np.asarray(items * shares[0][:, None] + seeds * shares[1][:, None])


def _split_effect(
    parts: Sequence[FloatArray], control_shares: Sequence[float], n_seeds: int, binary: bool
) -> Effect:
    """Split the sum of the means of ``parts``, each ``[seeds, items]`` over the same items."""
    item_means = np.sum([part.mean(axis=0) for part in parts], axis=0)
    estimate = float(item_means.mean())
    items = _zero_if_constant((item_means - estimate) * _bessel_factor(item_means.size), item_means)
    seeds = tuple(_estimate_seed_noise(p, s) for p, s in zip(parts, control_shares, strict=True))
    return Effect(estimate, items, seeds, n_seeds, binary)


def _estimate_seed_noise(part: FloatArray, control_share: float) -> SeedNoise:
    """Measure the seed noise of the mean of one ``[seeds, items]`` matrix."""
    n_seeds, n_items = part.shape
    if n_seeds == 1:
        return SeedNoise(1, 0.0, 0.0, 1.0, control_share)
    means = part.mean(axis=1)
    deviations = _zero_if_constant((means - means.mean()) * _bessel_factor(n_seeds), means)
    raw = float(np.mean(deviations**2)) / n_seeds
    rest = part - means[:, None] - part.mean(axis=0) + means.mean()
    rest_freedom = (n_seeds - 1) * max(n_items - 1, 1)
    noise = float(np.sum(rest**2)) / rest_freedom / part.size
    return SeedNoise(n_seeds, max(0.0, raw - noise), noise, n_seeds - 1.0, control_share)


def _varies(effect: Effect) -> bool:
    return effect.standard_error > 0


def _is_binary(scores: Scores) -> bool:
    return bool(np.all((scores.values == 0) | (scores.values == 1)))


def _raise_seed_variance(effect: Effect, floor: float, gain: float) -> Effect:
    """Return the effect with its seed variance at ``floor`` or above, as sure as the pool is."""
    own = effect.seeds[0]
    raised = dataclasses.replace(own, variance=max(own.variance, floor))
    pool = dataclasses.replace(own, variance=floor)
    uncertain, pooled = np.array(raised.uncertain), np.array(pool.uncertain)
    freedom = pooled_df(uncertain, pooled, own.count - 1, gain)
    seeds = (dataclasses.replace(raised, df=float(freedom)),)
    return dataclasses.replace(effect, seeds=seeds)


def _bessel_factor(count: int) -> float:
    """Return what makes the plain variance of ``count`` deviations unbiased."""
    return float(np.sqrt(count / (count - 1))) if count > 1 else 0.0


def _zero_if_constant(deviations: FloatArray, values: FloatArray) -> FloatArray:
    """Return zeros where all ``values`` are equal but for rounding, else ``deviations``."""
    rounding = 1e-12 * max(1.0, float(np.max(np.abs(values))))
    return np.zeros_like(deviations) if np.ptp(values) <= rounding else deviations


def _draw_deviations(
    effects: Sequence[Effect], rng: np.random.Generator, draws: int
) -> tuple[FloatArray, FloatArray]:
    """Return item and seed deviations, both ``[effects, draws]`` with variance 1 (or all 0)."""
    scales = np.array([np.sqrt(e.item_variance) for e in effects])
    matrix = np.stack([e.item_deviations for e in effects], axis=1)
    matrix = matrix / np.where(scales > 0, scales, 1.0)
    items = np.empty((draws, len(effects)))
    step = max(1, CHUNK_INDICES // matrix.shape[0])
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        items[start:stop] = _resample_items(matrix, stop - start, rng)
    control = rng.standard_normal(draws)
    seeds = np.stack([_draw_seed_deviations(e, control, rng) for e in effects])
    return items.T, seeds


def _resample_items(items: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Return ``[draws, effects]`` means of resampled ``items`` (``[items, effects]``)."""
    count = items.shape[0]
    indices = rng.integers(0, count, size=(draws, count))
    indices += np.arange(draws)[:, None] * count
    weights = np.bincount(indices.ravel(), minlength=draws * count).reshape(draws, count)
    return np.asarray(weights.astype(np.float64) @ items / count)


def _draw_seed_deviations(
    effect: Effect, control: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return ``[draws]`` normal deviations of variance 1, part of them the control's."""
    variance = effect.seed_variance
    shared = sum(s.variance * s.control_share for s in effect.seeds) / variance if variance else 0.0
    own = rng.standard_normal(control.size)
    return np.asarray(own * np.sqrt(1 - shared) - control * np.sqrt(shared))


def _t_scale(freedom: float, uniforms: FloatArray) -> FloatArray:
    """Return ``[draws]`` factors that turn a normal deviate into Student's t."""
    # chdtri inverts the upper tail of chi-squared, many times faster than stats.chi2.ppf
    return np.asarray(np.sqrt(freedom / special.chdtri(freedom, 1.0 - uniforms)))
