"""Hierarchical paired bootstrap of mean scores: resample items, draw seed deviations.

Per-item test scores come in as ``[seeds, items]`` matrices. An ``Effect`` is a mean, or the mean
difference of two methods, with its variance components; the bootstrap draws from its sampling
distribution.

A matrix splits into mean + seed deviation + item deviation + rest. Items are resampled, the same
ones for all effects. Seeds are not resampled: with only 2 to 5 of them that understates their
variance by (S-1)/S and yields a handful of values without tails. The seed part is drawn from
Student's t instead:

- its variance is that of the seed means, less the items' noise in them (rest / items), which the
  item deviations already carry (Owen 2007, arXiv 0712.1111); it is never below zero;
- with only three seeds, between-seed variance is pooled across methods: no method's goes below
  the mean over methods (``pool_seed_noise``), which also makes it more certain;
- its degrees of freedom are the number of seeds less one, more where pooled (``pooled_df``).

Items may come in groups (``Scores.groups``). Then the items' part is the sum over groups of
``group_variance``, and it is drawn with a normal weight for each group: few groups resampled with
replacement understate the variance as few seeds do. Its degrees of freedom are ``group_df``.

``benchmarks/verdict.py`` measures the error rates of the verdicts built on it.
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
from bakeoff.analysis.group_variance import (
    IntArray,
    group_df,
    group_sizes,
    group_sums,
    group_variances,
    planned_design_effect,
)
from bakeoff.core.errors import BakeoffError

DRAWS = 10_000
# Bootstrap indices in memory at a time: a chunk then takes about 100 MB.
CHUNK_INDICES = 4_000_000


@dataclass(frozen=True)
class Scores:
    """Scores of one method: ``values`` is ``[seeds, items]``, one row for each of ``seeds``.

    ``groups`` is ``[items]``, the number of each item's group; None: every item is its own.
    """

    seeds: tuple[int, ...]
    values: FloatArray
    groups: IntArray | None = None

    def __post_init__(self) -> None:
        fits = self.values.ndim == 2 and self.values.shape[0] == len(self.seeds) > 0
        if not fits or self.values.shape[1] == 0 or not np.isfinite(self.values).all():
            raise BakeoffError(
                "scores-shape",
                f"Scores of shape {self.values.shape} for {len(self.seeds)} seeds are empty, "
                "ragged or not finite.",
                "pass one row of finite scores per seed.",
            )
        groups = self.groups
        if groups is not None and (groups.shape != self.values.shape[1:] or np.ptp(groups) == 0):
            raise BakeoffError(
                "scores-groups",
                f"Groups of shape {groups.shape} for {self.values.shape[1]} items are not one "
                "number for each item, or all the same.",
                "pass one number per item and at least two groups, or None.",
            )


@dataclass(frozen=True)
class SeedNoise:
    """Variance that one set of seeds adds to an effect.

    ``variance`` is the between-seed variance of the mean over the seeds, ``noise`` the items'
    noise in the variance of the seed means, and ``df`` the degrees of freedom of ``uncertain``.
    ``control_share`` is the control's share of the between-seed variance, common to all contenders.
    """

    count: int
    variance: float
    noise: float
    df: float
    control_share: float

    @property
    def known(self) -> bool:
        """Whether there are enough seeds to estimate any noise."""
        return self.count > 1

    @property
    def uncertain(self) -> float:
        """The part of the variance that is known from these few seeds only."""
        return float(uncertain_variance(np.array(self.variance), np.array(self.noise)))


@dataclass(frozen=True)
class Effect:
    """A mean over seeds and items, split into the parts that the bootstrap draws.

    ``item_deviations`` is ``[items]``, or ``[groups]`` where items have ``groups``, scaled so that
    the mean of its squares over their number is the items' variance of the mean. ``seeds`` has two
    sets when the seeds of a difference are not paired, else one. ``binary`` means that all scores
    behind the effect are 0 or 1.
    """

    estimate: float
    item_deviations: FloatArray
    seeds: tuple[SeedNoise, ...]
    n_seeds: int
    binary: bool
    groups: IntArray | None = None

    @property
    def n_items(self) -> int:
        """The number of items that it is a mean over."""
        return self.item_deviations.size if self.groups is None else self.groups.size

    @property
    def item_variance(self) -> float:
        """The items' part of the variance of the mean, including their noise at each seed."""
        return float(np.mean(self.item_deviations**2)) / self.item_deviations.size

    @property
    def item_df(self) -> float:
        """The degrees of freedom of ``item_variance``."""
        return group_df(self.groups, self.n_items)

    @property
    def effective_items(self) -> float:
        """The number of independent items that tell as much, before any score is known."""
        return self.n_items / planned_design_effect(self.groups)

    @property
    def seed_variance(self) -> float:
        """The between-seed part of the variance of the mean."""
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
        """The Welch-Satterthwaite degrees of freedom of ``uncertain_variance``."""
        terms = sum(s.uncertain**2 / s.df for s in self.seeds)
        total = sum(s.uncertain for s in self.seeds)
        return total**2 / terms if terms > 0 else MAX_DF

    @property
    def seed_noise_known(self) -> bool:
        """Whether every set has several seeds; else the error covers the items only."""
        return all(s.known for s in self.seeds)


def variance_components(effects: Sequence[Effect]) -> VarianceComponents:
    """Return the variance components of effects, for ``error_distribution``."""
    uncertain = np.array([e.uncertain_variance for e in effects])
    variance = np.array([e.item_variance + e.seed_variance for e in effects])
    return VarianceComponents(
        items=variance - uncertain,
        item_df=np.array([e.item_df for e in effects]),
        seeds=uncertain,
        seed_df=np.array([e.seed_df for e in effects]),
    )


def mean_effect(scores: Scores) -> Effect:
    """Split a method's mean score into the parts that the bootstrap draws."""
    binary, n_seeds = _is_binary(scores), len(scores.seeds)
    return _split_effect([scores.values], [0.0], n_seeds, binary, scores.groups)


def difference_effect(method: Scores, control: Scores) -> Effect:
    """Split the mean of method - control, paired by item and by seed.

    A seed fixes the data order, so equal seeds are paired; seeds that only one side has are left
    out. Without a common seed all seeds are used, unpaired.

    Raises:
        BakeoffError: ``scores-items`` if the two have different numbers of items, ``scores-groups``
            if they have different groups.
    """
    if method.values.shape[1] != control.values.shape[1]:
        raise BakeoffError(
            "scores-items",
            f"{method.values.shape[1]} items cannot be paired with {control.values.shape[1]}.",
            "score every method on the same items.",
        )
    if not _have_same_groups(method.groups, control.groups):
        raise BakeoffError(
            "scores-groups",
            "The same items are in different groups for two methods.",
            "pass the same groups for every method.",
        )
    binary, groups = _is_binary(method) and _is_binary(control), method.groups
    common = [s for s in method.seeds if s in control.seeds]
    if not common:
        n_seeds = min(len(method.seeds), len(control.seeds))
        parts = [method.values, -control.values]
        return _split_effect(parts, [0.0, 1.0], n_seeds, binary, groups)
    rows = [method.seeds.index(s) for s in common]
    control_rows = [control.seeds.index(s) for s in common]
    paired = method.values[rows] - control.values[control_rows]
    return _split_effect([paired], [SHARED_WITH_CONTROL], len(common), binary, groups)


def pool_seed_noise(effects: Sequence[Effect]) -> list[Effect]:
    """Raise each seed variance to at least the mean over the effects.

    Three seeds often agree by chance. Without pooling, one of ten contenders would then look
    significant. Unpaired or single seeds and effects without any variance are left as they are.
    """
    pooled = [e for e in effects if len(e.seeds) == 1 and e.seed_noise_known and _varies(e)]
    if not pooled:
        return list(effects)
    # variance of a single seed, because contenders may have lost some
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

    All effects must have the same items. They share the resampled items and the control's seed
    deviations, which makes them correlate as the true means do. One effect's draw is

        estimate + z_items * sqrt(certain) + z_seeds * sqrt(df / X) * sqrt(uncertain)

    with X chi-squared on the effect's ``seed_df``, so that the seed part follows Student's t. With
    groups the items' part does so, too, on ``item_df``.
    """
    items, seeds = _draw_deviations(effects, rng, draws)
    scale_uniforms = rng.random(draws)
    if effects[0].groups is not None:
        items = items * _t_scale(effects[0].item_df, rng.random(draws))
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

    These are normal, not t: they give the correlation of the effects, and ``error_distribution``
    accounts for the uncertainty of each standard error. An effect without variance is 0 throughout.
    """
    items, seeds = _draw_deviations(effects, rng, draws)
    parts = np.array([[e.item_variance, e.seed_variance] for e in effects]).T
    total = parts.sum(axis=0)
    shares = np.sqrt(parts / np.where(total > 0, total, 1.0))
    return np.asarray(items * shares[0][:, None] + seeds * shares[1][:, None])


def _split_effect(
    parts: Sequence[FloatArray],
    control_shares: Sequence[float],
    n_seeds: int,
    binary: bool,
    groups: IntArray | None,
) -> Effect:
    """Split the sum of the means of ``parts``, each ``[seeds, items]`` over the same items."""
    item_means = np.sum([part.mean(axis=0) for part in parts], axis=0)
    estimate = float(item_means.mean())
    items = _scaled_deviations(item_means, estimate, groups)
    seeds = tuple(
        _estimate_seed_noise(p, s, groups) for p, s in zip(parts, control_shares, strict=True)
    )
    return Effect(estimate, items, seeds, n_seeds, binary, groups)


def _scaled_deviations(
    item_means: FloatArray, estimate: float, groups: IntArray | None
) -> FloatArray:
    """Return ``Effect.item_deviations`` of the items' means over the seeds."""
    if groups is None:
        scaled = (item_means - estimate) * _bessel_factor(item_means.size)
        return _zero_if_constant(scaled, item_means)
    sizes = group_sizes(groups)
    deviations = _zero_if_constant(item_means - estimate, item_means)
    sums = group_sums(deviations[None], groups)[0] / np.sqrt(1 - sizes / item_means.size)
    return np.asarray(sums * sizes.size / item_means.size)


def _estimate_seed_noise(
    part: FloatArray, control_share: float, groups: IntArray | None
) -> SeedNoise:
    """Measure the seed noise of the mean of one ``[seeds, items]`` matrix."""
    n_seeds, n_items = part.shape
    if n_seeds == 1:
        return SeedNoise(1, 0.0, 0.0, 1.0, control_share)
    means = part.mean(axis=1)
    deviations = _zero_if_constant((means - means.mean()) * _bessel_factor(n_seeds), means)
    raw = float(np.mean(deviations**2)) / n_seeds
    rest = part - means[:, None] - part.mean(axis=0) + means.mean()
    if groups is None:
        rest_df = (n_seeds - 1) * max(n_items - 1, 1)
        noise = float(np.sum(rest**2)) / rest_df / part.size
    else:
        noise = float(group_variances(rest, groups).sum()) / (n_seeds - 1) / n_seeds
    return SeedNoise(n_seeds, max(0.0, raw - noise), noise, n_seeds - 1.0, control_share)


def _varies(effect: Effect) -> bool:
    return effect.standard_error > 0


def _is_binary(scores: Scores) -> bool:
    return bool(np.all((scores.values == 0) | (scores.values == 1)))


def _raise_seed_variance(effect: Effect, floor: float, gain: float) -> Effect:
    """Return the effect with a seed variance of at least ``floor``, the mean of the pool."""
    noise = effect.seeds[0]
    raised = dataclasses.replace(noise, variance=max(noise.variance, floor))
    pool = dataclasses.replace(noise, variance=floor)
    uncertain, pooled = np.array(raised.uncertain), np.array(pool.uncertain)
    df = pooled_df(uncertain, pooled, noise.count - 1, gain)
    seeds = (dataclasses.replace(raised, df=float(df)),)
    return dataclasses.replace(effect, seeds=seeds)


def _bessel_factor(count: int) -> float:
    """Return the factor that makes the plain variance of ``count`` deviations unbiased."""
    return float(np.sqrt(count / (count - 1))) if count > 1 else 0.0


def _zero_if_constant(deviations: FloatArray, values: FloatArray) -> FloatArray:
    """Return zeros where all ``values`` are equal but for rounding, else ``deviations``."""
    rounding = 1e-12 * max(1.0, float(np.max(np.abs(values))))
    return np.zeros_like(deviations) if np.ptp(values) <= rounding else deviations


def _draw_deviations(
    effects: Sequence[Effect], rng: np.random.Generator, draws: int
) -> tuple[FloatArray, FloatArray]:
    """Draw item and seed deviations, both ``[effects, draws]`` with variance 1 (or all 0)."""
    scales = np.array([np.sqrt(e.item_variance) for e in effects])
    matrix = np.stack([e.item_deviations for e in effects], axis=1)
    matrix = matrix / np.where(scales > 0, scales, 1.0)
    items = np.empty((draws, len(effects)))
    draw = _resample_items if effects[0].groups is None else _weight_groups
    step = max(1, CHUNK_INDICES // matrix.shape[0])
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        items[start:stop] = draw(matrix, stop - start, rng)
    control = rng.standard_normal(draws)
    seeds = np.stack([_draw_seed_deviations(e, control, rng) for e in effects])
    return items.T, seeds


def _resample_items(items: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Return means of resampled ``items`` (``[items, effects]``) as ``[draws, effects]``."""
    count = items.shape[0]
    indices = rng.integers(0, count, size=(draws, count))
    # one bincount for all draws: each draw counts in bins of its own
    indices += np.arange(draws)[:, None] * count
    weights = np.bincount(indices.ravel(), minlength=draws * count).reshape(draws, count)
    return np.asarray(weights.astype(np.float64) @ items / count)


def _weight_groups(groups: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Return means of ``groups`` (``[groups, effects]``) with normal weights, ``[draws, effects]``.

    The wild cluster bootstrap (Cameron, Gelbach and Miller 2008,
    https://doi.org/10.1162/rest.90.3.414) with normal weights.
    """
    count = groups.shape[0]
    return np.asarray(rng.standard_normal((draws, count)) @ groups / count)


def _have_same_groups(one: IntArray | None, other: IntArray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _draw_seed_deviations(
    effect: Effect, control: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return ``[draws]`` standard normal deviations that share the control's part."""
    variance = effect.seed_variance
    shared = sum(s.variance * s.control_share for s in effect.seeds) / variance if variance else 0.0
    method = rng.standard_normal(control.size)
    return np.asarray(method * np.sqrt(1 - shared) - control * np.sqrt(shared))


def _t_scale(df: float, uniforms: FloatArray) -> FloatArray:
    """Return ``[draws]`` factors that turn a normal deviate into Student's t."""
    # chdtri inverts the upper tail of chi-squared, many times faster than stats.chi2.ppf
    return np.asarray(np.sqrt(df / special.chdtri(df, 1.0 - uniforms)))
