"""Variance by group: hand-computed cases, matrix and statsmodels oracles, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import linalg, stats

from bakeoff.analysis.error_distribution import FloatArray
from bakeoff.analysis.group_variance import (
    IntArray,
    design_effect,
    group_df,
    group_sizes,
    group_variance,
    group_variances,
    planned_design_effect,
)

SIZES = {
    "equal": [4] * 10,
    "unequal": [1, 2, 3, 5, 8, 13],
    "one-big": [30, 2, 2, 3, 1],
    "two": [3, 5],
}


def groups_of(sizes: list[int]) -> IntArray:
    return np.repeat(np.arange(len(sizes)), sizes)


def deviations(n: int, seed: int = 0) -> FloatArray:
    values = np.random.default_rng(seed).normal(size=n)
    return values - values.mean()


def test_two_groups_by_hand() -> None:
    """Values 0, 2 | 4: mean 2, sums -2 and 2, shares 2/3 and 1/3: (4*3 + 4*1.5) / 9 = 2."""
    groups = np.array([0, 0, 1])
    assert group_variance(np.array([-2.0, 0.0, 2.0]), groups) == pytest.approx(2.0)
    # M = [[2 - 4/3, -2/3], [-2/3, 1 - 1/3]] with the root factors sqrt(3), sqrt(3/2): one freedom
    assert group_df(groups, 3) == pytest.approx(1.0)


def test_equal_groups_by_hand() -> None:
    """Equal groups are a sample of group means: var(ddof=1) / G, with G - 1 degrees."""
    values = np.array([1.0, 3.0, 2.0, 2.0, 7.0, 9.0])
    groups = np.array([0, 0, 1, 1, 2, 2])
    means = np.array([2.0, 2.0, 8.0])
    assert group_variance(values - 4.0, groups) == pytest.approx(means.var(ddof=1) / 3)
    assert group_df(groups, 6) == pytest.approx(2.0)
    assert design_effect(values[None] - 4.0, groups) == pytest.approx(
        4.0 / (values.var(ddof=1) / 6)
    )
    assert planned_design_effect(groups, icc=0.5) == pytest.approx(1.5)


def test_without_groups_the_usual_variance() -> None:
    d = deviations(40)
    usual = d.var(ddof=1) / 40
    own = np.random.default_rng(1).permutation(40)
    assert group_variance(d, None) == pytest.approx(usual, rel=1e-13)
    assert group_variance(d, own) == pytest.approx(usual, rel=1e-13)
    assert group_df(None, 40) == 39
    assert group_df(own, 40) == pytest.approx(39)
    assert design_effect(d[None], own) == pytest.approx(1)
    assert planned_design_effect(None) == planned_design_effect(own) == 1
    assert (group_variance(np.zeros(1), None), group_df(None, 1)) == (0.0, 1.0)


@pytest.mark.parametrize("kind", SIZES)
def test_matches_the_matrices_of_the_papers(kind: str) -> None:
    """CR2 and its degrees of freedom from (I - H)^(-1/2) by a matrix root, item by item."""
    groups = groups_of(SIZES[kind])
    n = groups.size
    residuals = np.eye(n) - 1 / n
    d = deviations(n)
    variance, columns = 0.0, []
    for g in np.unique(groups):
        rows = groups == g
        root = np.asarray(linalg.inv(linalg.sqrtm(residuals[np.ix_(rows, rows)]))).real
        variance += (np.ones(rows.sum()) @ root @ d[rows] / n) ** 2
        columns.append(residuals[:, rows] @ root @ np.ones(rows.sum()) / n)
    m = np.array(columns) @ np.array(columns).T
    assert group_variance(d, groups) == pytest.approx(variance, rel=1e-10)
    assert group_df(groups, n) == pytest.approx(np.trace(m) ** 2 / np.sum(m**2), rel=1e-10)


def test_cr2_of_equal_groups_is_statsmodels_cr1() -> None:
    """With equal groups CR2 is CR0 times G / (G - 1), the CR1 factor of an intercept-only model."""
    groups, d = groups_of(SIZES["equal"]), deviations(40)
    fit = sm.OLS(d, np.ones(40)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    assert group_variance(d, groups) == pytest.approx(float(fit.cov_params()[0, 0]) * 10 / 9)


@pytest.mark.parametrize("kind", SIZES)
def test_cr2_lies_between_statsmodels_cr0_and_the_jackknife(kind: str) -> None:
    groups = groups_of(SIZES[kind])
    d = deviations(groups.size)
    cov = {"groups": groups, "use_correction": False}
    cr0 = sm.OLS(d, np.ones(d.size)).fit(cov_type="cluster", cov_kwds=cov).cov_params()[0, 0]
    without = [d[groups != g].mean() for g in np.unique(groups)]
    cr3 = np.sum(np.square(without))  # deviations from the mean of all, which is 0
    assert cr0 < group_variance(d, groups) < cr3


def test_rows_and_labels_do_not_matter() -> None:
    """Labels may be any integers; several rows at once give the same as one by one."""
    groups, rows = groups_of(SIZES["unequal"]), np.stack([deviations(32, s) for s in range(3)])
    together = group_variances(rows, groups)
    assert together == pytest.approx([group_variance(r, 7 * groups + 3) for r in rows])
    assert group_df(7 * groups + 3, 32) == pytest.approx(group_df(groups, 32))
    assert list(group_sizes(7 * groups)) == SIZES["unequal"]


def test_few_or_unequal_groups_have_few_degrees_of_freedom() -> None:
    assert group_df(groups_of(SIZES["equal"]), 40) == pytest.approx(9)
    assert group_df(groups_of(SIZES["one-big"]), 38) == pytest.approx(1.4, abs=0.01)
    assert 1 <= group_df(groups_of([400, 1]), 401) == pytest.approx(1)


def test_one_group_is_refused() -> None:
    one = np.zeros(5, dtype=np.int64)
    with pytest.raises(ValueError, match="single group"):
        group_variance(deviations(5), one)
    with pytest.raises(ValueError, match="single group"):
        group_df(one, 5)


def test_coverage_by_group_and_as_independent_items() -> None:
    """20 groups at ICC .3: 95 % intervals hold by group, and in far fewer cases item by item."""
    rng = np.random.default_rng(23)
    groups = groups_of([2, 4, 6, 8, 10] * 4)
    n, draws = groups.size, 4000
    values = np.sqrt(0.3) * rng.normal(size=(draws, 20))[:, groups]
    values += np.sqrt(0.7) * rng.normal(size=(draws, n))
    means = values.mean(axis=1)
    centred = values - means[:, None]
    inside = {}
    for name, labels in (("groups", groups), ("items", None)):
        reach = stats.t.ppf(0.975, group_df(labels, n)) * np.sqrt(group_variances(centred, labels))
        inside[name] = np.mean(np.abs(means) <= reach)
    assert inside["groups"] == pytest.approx(0.95, abs=0.012)
    assert inside["items"] < 0.80
