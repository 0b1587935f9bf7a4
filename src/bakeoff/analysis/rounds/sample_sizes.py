"""The numbers of items, or of replicates, that would settle an inconclusive verdict."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy import special

from bakeoff.analysis.error_distribution import half_width
from bakeoff.analysis.power import MAX_ITEMS, MAX_SEEDS, POWER, smallest_sufficient
from bakeoff.analysis.rounds.differences import Difference
from bakeoff.analysis.rounds.plan import RoundsPlan


class SampleSizes(NamedTuple):
    """Numbers that would settle a verdict; None where no number does."""

    items: int | None = None
    seeds: int | None = None


def sample_sizes_needed(
    difference: Difference, plan: RoundsPlan, critical: float, equivalence_critical: float
) -> SampleSizes:
    """Return how many items, or replicates, settle the verdict with 80 % power.

    At the estimate and noise as seen and the critical values of the last look: the items at the
    most replicates of the plan, the replicates at the study's items, beyond the plan's. With
    groups, more items means more groups of the same sizes.
    """

    def is_settled(n_items: int, n_seeds: int) -> bool:
        return _is_settled(
            difference, plan.margin, n_items, n_seeds, (critical, equivalence_critical)
        )

    seeds = plan.most if difference.seed_noise_known else 1
    items_needed = smallest_sufficient(
        lambda n: is_settled(n, seeds), difference.n_items + 1, MAX_ITEMS
    )
    if not difference.seed_noise_known:
        return SampleSizes(items_needed)
    seeds_needed = smallest_sufficient(
        lambda n: is_settled(difference.n_items, n), plan.most + 1, MAX_SEEDS
    )
    return SampleSizes(items_needed, seeds_needed)


def _is_settled(
    difference: Difference,
    margin: float,
    n_items: int,
    n_seeds: int,
    critical: tuple[float, float],
) -> bool:
    """Return whether the difference is found, or equivalence shown, with 80 % power."""
    distance = abs(difference.estimate)
    error = difference.error_at(n_items, n_seeds)
    scale = math.sqrt(float(error.variance[0]))
    if scale == 0:
        return True
    found = special.ndtr((distance - float(half_width(critical[0], error)[0])) / scale)
    if found >= POWER:
        return True
    at_margin = difference.error_at(n_items, n_seeds, at_margin=True)
    room = margin - float(half_width(critical[1], at_margin)[0])
    if room <= 0:
        return False
    within = special.ndtr((room - distance) / scale) - special.ndtr((-room - distance) / scale)
    return bool(within >= POWER)
