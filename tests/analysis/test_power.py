"""Power before the run: against statsmodels and scipy where they have the test, and simulated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from bakeoff.analysis.power import (
    StudyDesign,
    detectable_difference,
    dunnett_critical,
    items_needed,
    power_of_difference,
    power_of_equivalence,
    seeds_needed,
)


@pytest.mark.parametrize("contenders", [1, 2, 3, 7])
def test_dunnett_critical_value(contenders: int) -> None:
    """Dunnett's critical value leaves five percent in the tails."""
    critical = dunnett_critical(contenders)
    covariance = np.full((contenders, contenders), 0.5) + 0.5 * np.eye(contenders)
    inside = stats.multivariate_normal(cov=covariance, seed=0).cdf(
        np.full(contenders, critical), lower_limit=np.full(contenders, -critical)
    )
    assert inside == pytest.approx(0.95, abs=5e-4)


def test_single_contender_paired_t_power() -> None:
    """A single contender with one seed has the power of a paired t test."""
    # one seed: the verdict knows the items' noise alone, which is then a t test over the items
    design = StudyDesign(n_items=400, n_seeds=1, n_contenders=1, item_sd=0.4, seed_sd=0.0)
    effect = TTestPower().solve_power(nobs=400, alpha=0.05, power=0.8)
    assert detectable_difference(design) == pytest.approx(0.4 * effect, rel=2e-3)
    # (1.966 + 0.842) * 0.4 / 20, by hand
    assert detectable_difference(design) == pytest.approx(0.0562, abs=1e-4)
    chance = TTestPower().power(effect_size=0.03 / 0.4, nobs=400, alpha=0.05)
    assert power_of_difference(design, 0.03) == pytest.approx(chance, abs=2e-3)
    assert power_of_difference(design, -0.03) == power_of_difference(design, 0.03)


def test_equivalence_matches_tost() -> None:
    """Equivalence with one seed is two one-sided tests."""
    design = StudyDesign(n_items=10_000, n_seeds=1, n_contenders=1, item_sd=0.4, seed_sd=0.0)
    # the estimate must lie within margin - 1.645 * 0.004 of 0
    reach = (0.02 - stats.norm.ppf(0.95) * 0.004) / 0.004
    expected = stats.norm.cdf(reach) - stats.norm.cdf(-reach)
    assert power_of_equivalence(design, 0.0, 0.02) == pytest.approx(expected, abs=1e-3)
    at_margin = power_of_equivalence(design, 0.02, 0.02)
    assert at_margin == pytest.approx(0.05, abs=1e-3)
    assert power_of_equivalence(design, 0.0, 0.005) == 0.0


def test_required_items_is_minimal() -> None:
    """The required size is the smallest that gives a conclusion."""
    design = StudyDesign(n_items=300, n_seeds=3, n_contenders=3)
    items = items_needed(design, 0.03)
    assert items is not None
    assert power_of_difference(replace(design, n_items=items), 0.03) >= 0.8
    assert power_of_difference(replace(design, n_items=items - 1), 0.03) < 0.8
    seeds = seeds_needed(replace(design, n_items=2000, seed_sd=0.02), 0.03)
    assert seeds is not None
    assert power_of_difference(StudyDesign(2000, seeds, 3, seed_sd=0.02), 0.03) >= 0.8
    assert power_of_difference(StudyDesign(2000, seeds - 1, 3, seed_sd=0.02), 0.03) < 0.8
    # with that much luck of the seeds no number of items tells two points
    assert items_needed(replace(design, seed_sd=0.02), 0.01) is None


def test_more_of_anything_shows_smaller_differences() -> None:
    design = StudyDesign(300, 3, 5)
    found = detectable_difference(design)
    for more in ({"n_items": 600}, {"n_seeds": 5}, {"n_contenders": 2}, {"seed_sd": 0.004}):
        assert detectable_difference(replace(design, **more)) < found
    assert detectable_difference(replace(design, item_sd=0.0, seed_sd=0.0)) == 0.0


def test_simulated_verdict_error_rates(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated verdicts keep their error rates."""
    n = 60
    assert script("verdict").main(["--quick", "--json", "--studies", str(n)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "family_wise_error", "coverage", "equivalence_error", "power_gap",
        "end_to_end_false", "end_to_end_false_one_search",
    }  # fmt: skip
    slack = 3 * math.sqrt(0.05 * 0.95 / n)
    assert found["family_wise_error"] <= 0.05 + slack
    assert found["end_to_end_false"] <= 0.05 + slack
    assert found["coverage"] >= 0.95 - slack
    assert found["equivalence_error"] <= 0.05 + slack
    assert found["power_gap"] <= 0.03 + 3 * math.sqrt(0.8 * 0.2 / n)
