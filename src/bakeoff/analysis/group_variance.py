"""Variance of a mean over items that come in groups, such as questions on one document.

Items of one group tend to be right or wrong together, so the variance is summed over groups, with
the bias-reduced CR2 estimate (Bell and McCaffrey 2002,
https://www150.statcan.gc.ca/n1/pub/12-001-x/2002002/article/9058-eng.pdf). For a mean over n items,
of which group g has n_g, the share h_g = n_g / n and the sum of deviations R_g, it is

    sum over g of R_g^2 / (1 - h_g) / n^2

Its degrees of freedom are those of Bell and McCaffrey for independent items, as Imbens and Kolesar
(2016, https://doi.org/10.1162/REST_a_00552) recommend: they depend on the sizes only, and few or
very unequal groups have few of them. Without groups each item is its own: then the variance is
the usual one, ``var(ddof=1) / n`` with n - 1 degrees of freedom.

Groups are an array of integers >= 0, one for each item; None means no groups. The variance over a
single group is not known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.error_distribution import FloatArray

IntArray = NDArray[np.int64]

PLANNED_ICC = 0.3
"""Intraclass correlation within groups that plans assume; the demo has 0.54 within templates."""


def group_variance(deviations: FloatArray, groups: IntArray | None) -> float:
    """Return the CR2 variance of a mean from its items' deviations, ``[items]``.

    The deviations are those from the mean. The variance of a single item is 0, as there is none.

    Raises:
        ValueError: all items are in one group.
    """
    return float(group_variances(deviations[None], groups)[0])


def group_variances(deviations: FloatArray, groups: IntArray | None) -> FloatArray:
    """Return the CR2 variance of each row's mean, ``[rows]`` from ``[rows, items]``.

    Raises:
        ValueError: all items are in one group.
    """
    n_items = deviations.shape[1]
    if groups is None:
        squares = np.einsum("ri,ri->r", deviations, deviations)
        return np.asarray(squares / (n_items * max(n_items - 1, 1)))
    sums, sizes = group_sums(deviations, groups), group_sizes(groups)
    return np.asarray((sums**2 / (1 - sizes / n_items)).sum(axis=1) / n_items**2)


def group_sums(deviations: FloatArray, groups: IntArray) -> FloatArray:
    """Return the sum of each group's deviations, ``[rows, groups]`` from ``[rows, items]``."""
    index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(index.max()) + 1
    return np.stack([np.bincount(index, weights=row, minlength=n_groups) for row in deviations])


def group_sizes(groups: IntArray) -> FloatArray:
    """Return the number of items of each group, ``[groups]``.

    Raises:
        ValueError: all items are in one group.
    """
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    if sizes.size < 2:
        raise ValueError("the variance of a mean over a single group is not known")
    return sizes


def group_df(groups: IntArray | None, n_items: int) -> float:
    """Return the Bell-McCaffrey degrees of freedom of ``group_variance``, at least 1.

    They are ``tr(M)^2 / tr(M^2)``. For a mean, and independent items, M has the entries
    ``(n_g [g = h] - n_g n_h / n) / sqrt((1 - h_g) (1 - h_h))``, so its trace is n.

    Raises:
        ValueError: all items are in one group.
    """
    if groups is None:
        return max(n_items - 1.0, 1.0)
    sizes = group_sizes(groups)
    weights = sizes**2 / (1 - sizes / n_items)
    off_diagonal = (weights.sum() ** 2 - np.sum(weights**2)) / n_items**2
    return float(n_items**2 / (np.sum(sizes**2) + off_diagonal))


def design_effect(deviations: FloatArray, groups: IntArray | None) -> float | None:
    """Return how many times the variance of independent items that of the groups is (Kish 1965).

    ``deviations`` is ``[rows, items]``, each from its row's mean; variances are summed over rows.
    None where no item differs from the mean.

    Raises:
        ValueError: all items are in one group.
    """
    independent = float(group_variances(deviations, None).sum())
    return float(group_variances(deviations, groups).sum()) / independent if independent else None


def planned_design_effect(groups: IntArray | None, icc: float = PLANNED_ICC) -> float:
    """Return the design effect before any score is known, ``1 + (sum n_g^2 / n - 1) icc``.

    ``icc`` is the intraclass correlation of the items' differences (Kish 1965).
    """
    if groups is None:
        return 1.0
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(1 + (np.sum(sizes**2) / sizes.sum() - 1) * icc)
