"""Boundaries of repeated looks against published tables, exact probabilities and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from bakeoff.analysis.power import dunnett_critical
from bakeoff.analysis.rounds.boundaries import (
    NOTHING_SPENT,
    DrawnCrossing,
    ExactCrossing,
    boundary,
    difference_crossing,
    extend_boundary,
    information_times,
    spent_alpha,
)

SEED = 20261130


def critical_values(
    n_contenders: int, looks: tuple[int, ...], clock: float, alpha: float = 0.05
) -> tuple[float, ...]:
    crossing = difference_crossing(clock, looks, n_contenders, 200_000, SEED)
    return boundary([crossing] * len(looks), information_times(clock, looks), alpha)


@pytest.mark.parametrize(
    ("looks", "published"),
    [
        # Reboussin, DeMets, Kim and Lan (2000), O'Brien-Fleming spending, two-sided 5 %
        ((1, 2, 3, 4), [4.333, 2.963, 2.359, 2.014]),
        ((1, 2, 3, 4, 5), [4.877, 3.357, 2.680, 2.290, 2.031]),
    ],
)
def test_published_boundaries(looks: tuple[int, ...], published: list[float]) -> None:
    """Each side of the published two-sided boundaries spends 2.5 % by the same function."""
    crossing = ExactCrossing(0.0, looks, two_sided=False)
    found = boundary([crossing] * len(looks), information_times(0.0, looks), 0.025)
    assert found == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize(
    ("n_contenders", "looks", "clock", "expected"),
    [
        (1, (5, 8, 12, 16), 0.0, [3.51, 2.78, 2.30, 2.05]),
        (1, (5, 8, 12, 16), 0.4, [2.23, 2.20, 2.16, 2.15]),
        (7, (3, 5, 8, 12, 16), 0.1, [3.69, 3.24, 2.97, 2.83, 2.76]),
    ],
)
def test_protocol_boundaries(
    n_contenders: int, looks: tuple[int, ...], clock: float, expected: list[float]
) -> None:
    """The check values of the protocol, from other draws, at 5 %."""
    assert critical_values(n_contenders, looks, clock) == pytest.approx(expected, abs=0.03)


def test_information_times() -> None:
    """By hand: with lambda 1/4 the variances are 1/4 + 1/4, 1/4 + 1/8, 1/4 + 1/16."""
    assert information_times(0.25, (4, 8, 16)) == pytest.approx((5 / 8, 5 / 6, 1.0))
    assert information_times(0.0, (4, 8, 16)) == pytest.approx((1 / 4, 1 / 2, 1.0))


def test_spent_alpha() -> None:
    assert spent_alpha(1.0, 0.045) == 0.045
    assert spent_alpha(0.25, 0.05) == pytest.approx(2 * norm.sf(2 * norm.isf(0.025)))
    assert spent_alpha(0.01, 0.05) < 1e-80


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("clock", [0.0, 0.3, 20.0])
def test_exact_boundary_has_its_probability(two_sided: bool, clock: float) -> None:
    """The probability of passing at any of three looks is alpha, by the normal distribution."""
    looks, alpha = (3, 5, 8), 0.04
    times = information_times(clock, looks)
    crossing = ExactCrossing(clock, looks, two_sided=two_sided)
    values = np.array(boundary([crossing] * 3, times, alpha))
    t = np.array(times)
    correlation = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    within = multivariate_normal(np.zeros(3), correlation, allow_singular=True).cdf(
        values, lower_limit=-values if two_sided else None
    )
    assert 1 - within == pytest.approx(alpha, abs=2e-4)


def test_drawn_boundary_has_its_probability() -> None:
    """Two contenders and two looks: a normal distribution in four dimensions."""
    looks, alpha = (3, 8), 0.045
    times = np.array(information_times(0.2, looks))
    first, second = critical_values(2, looks, 0.2, alpha)
    over_looks = np.array([[1, math.sqrt(times[0])], [math.sqrt(times[0]), 1]])
    correlation = np.kron(np.array([[1, 0.5], [0.5, 1]]), over_looks)
    bounds = np.array([first, second] * 2)
    within = multivariate_normal(np.zeros(4), correlation).cdf(bounds, lower_limit=-bounds)
    assert 1 - within == pytest.approx(alpha, abs=1.5e-3)


def test_draws_agree_with_integration() -> None:
    looks = (5, 8, 12, 16)
    times = information_times(0.1, looks)
    drawn = boundary([DrawnCrossing(0.1, looks, 1, 200_000, SEED)] * 4, times, 0.045)
    assert drawn == pytest.approx(critical_values(1, looks, 0.1, 0.045), abs=0.03)


@pytest.mark.parametrize("n_contenders", [1, 7])
def test_single_look_is_dunnett(n_contenders: int) -> None:
    """One look at 4.5 %, and the levels of --again: the protocol's check values."""
    found = critical_values(n_contenders, (5,), 0.3, 0.045)
    assert found == (pytest.approx(dunnett_critical(n_contenders, 0.045)),)
    expected = {1: 3.02, 7: 3.55}[n_contenders]
    assert critical_values(n_contenders, (5,), 0.3, 0.0025)[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("n_contenders", [1, 3])
def test_clock_that_moves_back_spends_nothing(n_contenders: int) -> None:
    """What was spent early is missing later, and the last look spends what is left."""
    looks, alpha = (3, 5, 8), 0.045
    crossings = [difference_crossing(c, looks, n_contenders, 50_000, SEED) for c in (2.0, 0.0, 0.0)]
    times = [information_times(c, looks)[k] for k, c in enumerate((2.0, 0.0, 0.0))]
    assert times[1] < times[0]
    values = boundary(crossings, times, alpha)
    assert values[1] == NOTHING_SPENT
    assert math.isfinite(values[2])
    first = spent_alpha(times[0], alpha)
    assert extend_boundary(crossings[1], values[:1], first, times[1], alpha) == (math.inf, first)
    # with nothing left to the last look but what the first has not spent
    alone = dunnett_critical(n_contenders, alpha - first)
    assert dunnett_critical(n_contenders, alpha) < values[2] <= alone + 0.02


def test_too_rare_for_the_draws_is_conservative() -> None:
    """A share of less than one draw: the critical value of that level alone."""
    crossing = DrawnCrossing(0.0, (3, 5), 4, 1000, SEED)
    assert crossing.critical([5.0], 1e-4) == pytest.approx(dunnett_critical(4, 1e-4))


def test_boundary_is_the_same_again() -> None:
    assert critical_values(3, (3, 5, 8), 0.1) == critical_values(3, (3, 5, 8), 0.1)
