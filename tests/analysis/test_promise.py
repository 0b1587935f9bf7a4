"""The plan's promise: against simulated studies, published values and hand computation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from bakeoff.analysis.error_distribution import (
    SHARED_WITH_CONTROL,
    VarianceComponents,
    pooled_df,
    pooling_gain,
    uncertain_variance,
    z_score,
)
from bakeoff.analysis.power import StudyDesign, detectable_difference, dunnett_critical
from bakeoff.analysis.promise import planned_design, promise, replicate_sd
from bakeoff.analysis.rounds.boundaries import (
    ExactCrossing,
    boundary,
    difference_crossing,
    information_times,
)

ITEM_SD = 0.274
"""Of a difference of two methods that disagree on 15 % of the items, half of it at every seed."""
LOOKS = {1: (5, 8, 12, 16), 3: (3, 5, 8, 12, 16), 7: (3, 5, 8, 12, 16)}


def design(n_items: int, n_contenders: int, seed_sd: float) -> StudyDesign:
    return StudyDesign(n_items, 1, n_contenders, ITEM_SD, seed_sd, ITEM_SD)


class Simulated(NamedTuple):
    found: float
    equivalent: float
    replicates: float


def simulate(given: StudyDesign, looks: tuple[int, ...], truth: float, margin: float) -> Simulated:
    """Run 1,500 studies whose variances are estimated from their seeds, without futility."""
    n, k, size = given.n_items, given.n_contenders, (1500, given.n_contenders)
    rng = np.random.default_rng(1)
    rest = given.rest_sd**2 / n

    def differences(*shape: int) -> np.ndarray:
        values = rng.standard_normal((1500, k + 1, *shape))
        return (values[:, 1:] - values[:, :1]) / math.sqrt(2)

    per_seed = math.sqrt(2 * given.seed_sd**2 + rest) * differences(looks[-1])
    items = ITEM_SD / math.sqrt(n) * differences()
    clock = 0.5 * ITEM_SD**2 / n / (2 * given.seed_sd**2 + rest)
    times = information_times(clock, looks)
    two_sided = difference_crossing(clock, looks, k, 20_000, 3)
    critical = boundary([two_sided] * len(looks), times, 0.045)
    one_sided = [ExactCrossing(clock, looks, two_sided=False)] * len(looks)
    margin_critical = [boundary(one_sided, times, 0.045 / j) for j in range(1, k + 1)]
    is_open, found, equivalent = (np.full(size, v) for v in (True, False, False))
    used = np.zeros(size)
    for look, seeds in enumerate(looks):
        used[is_open] = seeds
        estimate = truth + items + per_seed[..., :seeds].mean(axis=-1)
        noise = np.full(size, rest / seeds)
        own = np.maximum(0, per_seed[..., :seeds].var(axis=-1, ddof=1) / seeds - noise)
        pool = np.broadcast_to(own.mean(axis=1, keepdims=True), size)
        raised = np.maximum(own, pool)
        uncertain = uncertain_variance(raised, noise)
        pooled = uncertain_variance(pool, noise)
        df = pooled_df(uncertain, pooled, seeds - 1.0, pooling_gain(k, SHARED_WITH_CONTROL))
        certain = np.maximum(ITEM_SD**2 / n + noise + raised - uncertain, 0)
        parts = (certain, np.full(size, n - 1.0), uncertain, df)
        error = VarianceComponents(*(part.ravel() for part in parts))
        z = z_score(np.abs(estimate).ravel(), error).reshape(size)
        gap = margin - np.abs(estimate)
        z_margin = np.sign(gap) * z_score(np.abs(gap).ravel(), error).reshape(size)
        for _ in range(k):
            left = np.maximum(k - equivalent.sum(axis=1), 1)
            needed = np.array(margin_critical)[left - 1, look]
            equivalent |= is_open & (z_margin > needed[:, None])
        differs = is_open & ~equivalent & (z > critical[look])
        found |= differs & (estimate > 0)
        is_open &= ~equivalent & ~differs
    return Simulated(found.mean(), equivalent.mean(), used.mean())


@pytest.mark.parametrize(
    ("contenders", "items", "seed_sd"), [(1, 480, 0.02), (1, 1319, 0.004), (3, 1319, 0.0074)]
)
def test_simulated_studies_keep_the_promise(contenders: int, items: int, seed_sd: float) -> None:
    """What is promised to be found in 80 % of studies is found in 75 to 86 %."""
    given, looks = design(items, contenders, seed_sd), LOOKS[contenders]
    promised = promise(given, looks, margin=0.03)
    at_difference = simulate(given, looks, promised.last.detectable, 0.03)
    assert 0.75 <= at_difference.found <= 0.86
    assert at_difference.replicates == pytest.approx(promised.expected_detectable, rel=0.12)
    at_zero = simulate(given, looks, 0.0, 0.03)
    assert at_zero.equivalent == pytest.approx(promised.equivalence_power, abs=0.05)


@pytest.mark.parametrize(
    ("contenders", "items", "seed_sd", "expected"),
    [(1, 480, 0.0074, 4.0), (1, 1319, 0.02, 3.2), (3, 1319, 0.004, 2.7), (7, 1319, 0.0074, 3.1)],
)
def test_close_to_the_designs_formula(
    contenders: int, items: int, seed_sd: float, expected: float
) -> None:
    """The difference is within 7 % of 1.03 (c + 0.842) standard errors at the last look."""
    promised = promise(design(items, contenders, seed_sd), LOOKS[contenders], 0.03, alpha=0.05)
    assert 100 * promised.last.detectable == pytest.approx(expected, rel=0.07)


def test_one_look_is_the_power_of_one_analysis() -> None:
    given = design(480, 1, 0.0063)
    promised = promise(given, (5,), 0.03)
    alone = detectable_difference(replace(given, n_seeds=5), alpha=0.045)
    assert promised.last.detectable == pytest.approx(alone, rel=0.03)
    assert promised.first.detectable == pytest.approx(alone, rel=0.01)
    assert (promised.expected_null, promised.control_detectable) == (5, 5)


def test_floor_by_hand() -> None:
    """At one look of many seeds the floor is the critical value times the items' error."""
    promised = promise(design(480, 7, 0.0), (50,), 0.03, alpha=0.05)
    assert promised.floor == pytest.approx(dunnett_critical(7) * ITEM_SD / math.sqrt(480), rel=0.01)
    # 0.05 / 7 one-sided: 2.45 standard errors of 1.25 points are 3.06 points
    least = stats.norm.isf(0.05 / 7) * ITEM_SD / math.sqrt(480)
    assert least == pytest.approx(0.0306, abs=1e-4)
    assert not promised.equivalence_possible
    assert promise(design(480, 7, 0.0), (50,), 0.0315, alpha=0.05).equivalence_possible


def test_items_that_show_equivalence() -> None:
    """At the number of items that is named, equivalence has 80 % power."""
    given = design(480, 1, 0.0063)
    promised = promise(given, (5, 8), 0.02)
    assert promised.equivalence_power < 0.8
    assert promised.equivalence_items is not None
    larger = promise(replace(given, n_items=promised.equivalence_items), (5, 8), 0.02)
    assert larger.equivalence_power == pytest.approx(0.8, abs=0.025)
    # where seeds differ by 5 points, no number of items shows 1 point
    assert promise(design(480, 1, 0.05), (5, 8), 0.01).equivalence_items is None


def test_grouped_items_count_as_fewer() -> None:
    """A design effect of 4 is as a fourth of the items."""
    grouped = planned_design(1920, 3, 2, 4.0, 479.0)
    plain = planned_design(480, 3, 2, 1.0, 479.0)
    of_groups, of_items = (promise(d, (3, 5, 8), 0.03) for d in (grouped, plain))
    assert of_groups.design_effect == 4.0
    assert of_groups.last == of_items.last
    assert of_groups.floor == of_items.floor
    few = promise(replace(grouped, item_df=9.0), (3, 5, 8), 0.03)
    assert few.floor > 1.1 * of_groups.floor


def test_one_finalist_leaves_more_luck() -> None:
    assert replicate_sd(2) == pytest.approx(0.00627)
    assert replicate_sd(1) == pytest.approx(0.00798)
    assert replicate_sd(5) == replicate_sd(2)
