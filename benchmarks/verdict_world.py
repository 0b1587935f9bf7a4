"""Studies with known truth for ``verdict.py``: settings race, replicates vary, items are scored.

- *search*: five rates half a decade apart; the best rate lies off their middle. Score and loss of
  each fall away from it (``race_world.py``), early losses favour higher rates, and a rung's loss is
  noisy: half of a seed's variance stays from rung to rung, half is new, more so at an early rung
  where the world says so. Validation items add noise, half of it the same at every seed. The loss
  at the end and the test score of a seed correlate at ``KAPPA``.
- *inside* (``replicates``): in each replicate the five settings race, two go on to the end, the one
  of lower validation loss is scored. *One search* (``one_search``): one seed's race chooses, fresh
  seeds at its choice are scored, as bakeoff did before.
- *items*: right and wrong answers, from what all methods share of an item, the method's taste in
  items (the same at every seed) and noise (new at every seed), all normal, with the discordance and
  accuracy of ``ACCURACY`` and ``DISCORDANCE``. With groups, all three correlate within a group, so
  that differences have the wanted intraclass correlation.

Differences and SDs are fractions of 1 at the interface, points of accuracy in the race.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from race_world import ABOVE, BELOW, CLIFF, GRID, HALF_WIDTH, OFFSET, PAIR_SD, SHIFT, SLOPE
from scipy import optimize, stats

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

ACCURACY, DISCORDANCE, STAYING = 0.66, 0.15, 0.5
KAPPA = 0.5
RUNGS = (0.1, 0.3, 1.0)
FARTHEST = 0.32
"""Farther from the control's accuracy no trial's can be, either way."""
DIVERGED = 1e6


@dataclass(frozen=True)
class World:
    """How settings, seeds and items vary; SDs in points.

    ``seed_sd`` is that of a seed's score, multiplied by ``wild`` above the best rate; ``early`` the
    SD of the first rung's own noise, in units of a rung's. ``wild_control`` and ``wild_contender``
    are seed SDs of the control and of the last contender, where they differ.
    """

    name: str
    seed_sd: float = 0.4
    n_items: int = 1319
    validation: int = 300
    half_width: float = HALF_WIDTH
    early: float = 1.0
    wild: float = 1.0
    offset: float = OFFSET
    shift: float = SHIFT
    search: bool = True
    wild_control: float | None = None
    wild_contender: float | None = None


class Noise(NamedTuple):
    """Shares of the latent variance that come of the item, the taste and the noise."""

    item: float
    taste: float
    noise: float


@dataclass(frozen=True)
class Groups:
    """Items in ``count`` groups, equal or of lognormal sizes; ``icc`` is that of differences."""

    count: int
    equal: bool
    icc: float


def both_right(correlation: float, gain: float = 0.0, other: float = 0.0) -> float:
    """Return the chance that two answers to an item are both right, of methods with these gains."""
    # an integral over what they have in common: bivariate distribution functions fail close to 1
    common, weights = np.polynomial.hermite_e.hermegauss(160)
    shift, rest = math.sqrt(correlation) * common, math.sqrt(1 - correlation)
    one, two = (
        stats.norm.cdf((stats.norm.ppf(ACCURACY + g) + shift) / rest) for g in (gain, other)
    )
    return float(weights @ (one * two) / weights.sum())


@lru_cache(maxsize=16)
def item_noise(discordance: float = DISCORDANCE, staying: float = STAYING) -> Noise:
    """Return what gives two equal methods this discordance, and the part of it that stays."""

    def correlation_at(disagreement: float) -> float:
        goal = ACCURACY - disagreement / 2
        return float(optimize.brentq(lambda r: both_right(r) - goal, 0.0, 0.9999))

    between = correlation_at(discordance)
    within = correlation_at(discordance * (1 - staying))
    return Noise(between, within - between, 1 - within)


def replicates(world: World, best: Array, n_seeds: int, rng: np.random.Generator) -> Array:
    """Return the test values of replicates that search by themselves, in points, ``[methods, S]``.

    ``best`` ``[methods]`` is each method's best rate in decades off the grid's middle; 0 is the
    value at it.
    """
    losses, values = _trials(world, best, n_seeds, rng)
    two = np.argsort(losses[0], axis=-1)[..., :2]
    at_end = np.take_along_axis(losses[2], two, -1)
    return _pick(values, _pick(two, at_end.argmin(axis=-1)))


def one_search(world: World, best: Array, n_seeds: int, rng: np.random.Generator) -> Array:
    """Return the test values of fresh seeds at the choice of one seed's race, ``[methods, S]``."""
    losses = _trials(world, best, 1, rng)[0]
    two = np.argsort(losses[0], axis=-1)[..., :2]
    second = np.take_along_axis(losses[1], two, -1)
    chosen = _pick(two, second.argmin(axis=-1))
    values = _trials(world, best, n_seeds, rng)[1]
    return _pick(values, np.broadcast_to(chosen, values.shape[:2]))


@lru_cache(maxsize=16)
def mean_values(world: World, searched_once: bool) -> tuple[Array, Array]:
    """Return the expected test value over best rates, as a grid of decades and one of points."""
    decades, rng = np.linspace(-1.2, 1.2, 41), np.random.default_rng(1)
    design = one_search if searched_once else replicates
    draws = [design(world, np.repeat(decades, 500), 1, rng)[:, 0] for _ in range(8)]
    return decades, np.mean(draws, axis=0).reshape(decades.size, 500).mean(axis=1)


def true_values(world: World, best: Array, *, searched_once: bool) -> Array:
    """Return the expected test values of methods with these best rates, in points."""
    return np.asarray(np.interp(best, *mean_values(world, searched_once)))


def plain_seeds(world: World, n_methods: int, n_seeds: int, rng: np.random.Generator) -> Array:
    """Return the test values of seeds without any search, in points, ``[methods, seeds]``."""
    sds = np.full(n_methods, world.seed_sd)
    if world.wild_control is not None:
        sds[0] = world.wild_control
    if world.wild_contender is not None:
        sds[-1] = world.wild_contender
    return sds[:, None] * rng.standard_normal((n_methods, n_seeds))


def score_items(
    points: Array, n_items: int, rng: np.random.Generator, groups: tuple[IntArray, float] | None
) -> Array:
    """Return answers of 0 and 1, ``[methods, seeds, items]``, from the trials' values in points.

    ``groups`` are the items' groups and the correlation of the latent values within them.
    """
    noise = item_noise()
    gains = np.clip(points / 100, -FARTHEST, FARTHEST)
    n_methods, n_seeds = points.shape
    item = math.sqrt(noise.item) * _normals((1, 1), n_items, groups, rng)
    taste = math.sqrt(noise.taste) * _normals((n_methods, 1), n_items, groups, rng)
    made = math.sqrt(noise.noise) * _normals((n_methods, n_seeds), n_items, groups, rng)
    made += taste + item + stats.norm.ppf(ACCURACY + gains)[..., None]
    return (made > 0).astype(np.float64)


def group_items(groups: Groups, n_items: int, rng: np.random.Generator) -> tuple[IntArray, float]:
    """Return the group of each item, and the latent correlation within groups."""
    weights = np.ones(groups.count) if groups.equal else rng.lognormal(0, 1, groups.count)
    sizes = np.maximum(1, np.floor(n_items * weights / weights.sum())).astype(np.int64)
    while sizes.sum() < n_items:
        sizes[rng.integers(groups.count)] += 1
    while sizes.sum() > n_items:
        sizes[sizes.argmax()] -= 1
    return np.repeat(np.arange(groups.count), sizes), _latent_correlation(groups.icc)


@lru_cache(maxsize=8)
def _latent_correlation(icc: float) -> float:
    """Return the correlation of latent values within groups that gives differences this one."""
    noise, rng = item_noise(), np.random.default_rng(0)
    n, grid, observed = 200_000, np.linspace(0.0, 0.95, 20), []
    cut = stats.norm.ppf(ACCURACY)
    shared, own = rng.standard_normal((3, 1, n)), rng.standard_normal((3, 2, n))
    for correlation in grid:
        # two items of a group at one seed: what all methods share, and the rest of two methods
        item, *rest = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        one, other = (math.sqrt(noise.item) * item + math.sqrt(1 - noise.item) * r for r in rest)
        difference = (one + cut > 0).astype(np.float64) - (other + cut > 0)
        observed.append(np.corrcoef(difference)[0, 1])
    return float(np.interp(icc, np.maximum.accumulate(observed), grid))


def _normals(
    shape: tuple[int, int],
    n_items: int,
    groups: tuple[IntArray, float] | None,
    rng: np.random.Generator,
) -> Array:
    own = rng.standard_normal((*shape, n_items))
    if groups is None:
        return own
    index, correlation = groups
    shared = rng.standard_normal((*shape, int(index.max()) + 1))[..., index]
    return np.asarray(math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own)


def _trials(
    world: World, best: Array, n_seeds: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return all settings' losses at the rungs and the end, and test values, in points.

    The losses are ``[rungs, methods, seeds, rates]``, the values ``[methods, seeds, rates]``.
    """
    shape = (best.size, n_seeds, GRID.size)
    decades = np.broadcast_to(GRID - best[:, None, None], shape)
    sd = world.seed_sd * np.where(decades > 0.3, world.wild, 1.0)
    lasting = rng.standard_normal(shape)
    item = PAIR_SD / math.sqrt(2) / math.sqrt(world.validation) / SLOPE
    stable = math.sqrt(0.5) * item * rng.standard_normal((best.size, 1, GRID.size))
    losses = np.empty((len(RUNGS), *shape))
    for rung, share in enumerate(RUNGS):
        own = (world.early if rung == 0 else 1.0) * rng.standard_normal(shape)
        at_rung = _drop(decades - world.shift * math.log10(1 / share), world)
        noise = math.sqrt(0.5) * item * rng.standard_normal(shape)
        losses[rung] = at_rung + sd / math.sqrt(2) * (lasting + own) + stable + noise
    final = _drop(decades, world)
    losses[:, final > CLIFF] = DIVERGED
    luck = sd * (math.sqrt(1 - KAPPA**2) * rng.standard_normal(shape) - KAPPA * lasting)
    return losses, luck - final


def _drop(decades: Array, world: World) -> Array:
    power = np.where(decades > 0, ABOVE, BELOW)
    return np.asarray(np.minimum(2.0 * (np.abs(decades) / world.half_width) ** power, 60.0))


def _pick(values: Array | IntArray, index: IntArray) -> NDArray[np.float64]:
    return np.take_along_axis(values, index[..., None], -1)[..., 0]
