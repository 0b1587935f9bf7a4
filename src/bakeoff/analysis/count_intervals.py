"""Verdicts from numbers of correct items, where the scores per item are unknown.

This is for imported results: a mean and a number of items in, the same ``Interval`` and
``Comparison`` values out. Without items nothing can be paired, and with one run the between-seed
variance is unknown and in no interval:

- a score's interval is Wilson's (1927), a difference's is Newcombe's (1998, method 10), both from
  statsmodels; treating methods scored on the same items as independent is conservative;
- intervals are simultaneous at Sidak's level (methods share the control and the items, so their
  differences are positively correlated);
- p values are read off the same intervals: the level at which one just reaches the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from bakeoff.analysis.bootstrap import DRAWS
from bakeoff.analysis.compare import ALPHA, Comparison, Interval, decide_verdict, holm
from bakeoff.core.record import ImportedScores

MAX_Z = 8.0
"""Largest normal score in the search for a p value: p is then about 1e-15."""


class CorrectCount(NamedTuple):
    """Number of correct items, ``right`` of ``n``."""

    right: int
    n: int

    @property
    def share(self) -> float:
        """The share of correct items."""
        return self.right / self.n


def counts_by_method(reported: Mapping[str, ImportedScores]) -> dict[str, CorrectCount]:
    """Return the counts of all methods whose score is a share of correct items."""
    return {
        method: CorrectCount(round(r.score * r.n), r.n)
        for method, r in reported.items()
        if r.score is not None and r.n is not None
    }


def score_intervals(reported: Mapping[str, ImportedScores]) -> dict[str, Interval]:
    """Return every score, with a 95 % interval over items where it is a share of correct items."""
    counts, intervals = counts_by_method(reported), {}
    for method, scores in reported.items():
        if scores.score is None:
            continue
        low = high = None
        if (count := counts.get(method)) is not None:
            low, high = _wilson_interval(count)
        intervals[method] = Interval(scores.score, low, high)
    return intervals


def compare_counts(
    contenders: Mapping[str, CorrectCount], control: CorrectCount, *, margin: float, better: str
) -> dict[str, Comparison]:
    """Compare every contender with the control, unpaired, with one run each."""
    if not contenders:
        return {}
    # Sidak (1967): each of k intervals at level (1 - alpha)^(1/k); adjusted p = 1 - (1 - p)^k
    alpha = 1 - (1 - ALPHA) ** (1 / len(contenders))
    rows = list(contenders.values())
    p_values = [_p_difference(row, control) for row in rows]
    adjusted = [-float(np.expm1(len(rows) * np.log1p(-min(p, 1 - 1e-16)))) for p in p_values]
    equivalence = holm(np.array([_p_equivalence(row, control, margin) for row in rows]))
    comparisons = {}
    for i, (method, row) in enumerate(contenders.items()):
        estimate = row.share - control.share
        comparisons[method] = Comparison(
            Interval(estimate, *_newcombe_interval(row, control, alpha)),
            p_value=p_values[i],
            p_adjusted=adjusted[i],
            p_equivalence=float(equivalence[i]),
            verdict=decide_verdict(estimate, adjusted[i], float(equivalence[i]), better),
            n_seeds=1,
            seed_noise_known=False,
        )
    return comparisons


def draw_counts(
    counted: Mapping[str, CorrectCount], rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Draw every method's score over new items, independently for each method."""
    return {m: rng.binomial(c.n, c.share, size=DRAWS) / c.n for m, c in counted.items()}


def _wilson_interval(count: CorrectCount) -> tuple[float, float]:
    """Return Wilson's interval of a share at level 1 - ALPHA."""
    from statsmodels.stats.proportion import proportion_confint  # takes 0.7 s

    low, high = proportion_confint(*count, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def _newcombe_interval(one: CorrectCount, two: CorrectCount, alpha: float) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two shares at level 1 - alpha."""
    from statsmodels.stats.proportion import confint_proportions_2indep  # takes 0.7 s

    low, high = confint_proportions_2indep(
        *one, *two, method="newcomb", compare="diff", alpha=alpha
    )
    return float(low), float(high)


def _p_difference(one: CorrectCount, two: CorrectCount) -> float:
    """Return the two-sided p value of no difference: the level whose interval just reaches 0."""
    difference = one.share - two.share
    if difference == 0:
        return 1.0
    return 2 * float(special.ndtr(-_z_at_bound(one, two, 0.0, upper=difference < 0)))


def _p_equivalence(one: CorrectCount, two: CorrectCount, margin: float) -> float:
    """Return the larger p value of the two one-sided tests at the margin."""
    if abs(one.share - two.share) >= margin:
        return 1.0
    ends = [_z_at_bound(one, two, -margin, upper=False), _z_at_bound(one, two, margin, upper=True)]
    return float(special.ndtr(-min(ends)))


def _z_at_bound(one: CorrectCount, two: CorrectCount, bound: float, *, upper: bool) -> float:
    """Return the normal score at which that end of the interval equals ``bound``."""

    def beyond(z: float) -> float:
        ends = _newcombe_interval(one, two, 2 * float(special.ndtr(-z)))
        return bound - ends[1] if upper else ends[0] - bound

    if beyond(MAX_Z) >= 0:
        return MAX_Z
    return float(optimize.brentq(beyond, 1e-9, MAX_Z, xtol=1e-6))
