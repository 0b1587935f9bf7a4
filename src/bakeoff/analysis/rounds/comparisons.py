"""Comparisons of a study in rounds: each contender's from the look that closed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Comparison, Interval, Verdict
from bakeoff.analysis.error_distribution import VarianceComponents, half_width
from bakeoff.analysis.rounds.look import ContenderLook, Look
from bakeoff.analysis.rounds.looks import run_looks
from bakeoff.analysis.rounds.p_values import LEAST_P, RepeatedPValues
from bakeoff.analysis.rounds.plan import RoundsPlan, again_alpha

TIME = "time"
"""Reason of a contender that was still open when the study's hours ended."""


def compare_rounds(
    looks: Sequence[Look], plan: RoundsPlan, *, out_of_time: bool = False
) -> dict[str, Comparison]:
    """Return every contender's comparison from the look that closed it, or else the last one.

    A contender that is still open is ``inconclusive``, without a reason unless ``out_of_time``.
    One without enough replicates has no comparison. Both p values are repeated p values
    (``RepeatedPValues``): below the plan's alpha exactly where the interval excludes 0, and where
    equivalence is shown.
    """
    p_values = RepeatedPValues(plan, looks)
    comparisons = {}
    for method in looks[0].open if looks else ():
        found = _last_numbers(looks, method)
        if found is not None:
            comparisons[method] = _compare(*found, p_values, out_of_time)
    return comparisons


def compare_again(
    contenders: Mapping[str, Scores], control: Scores, plan: RoundsPlan, number: int
) -> dict[str, Comparison]:
    """Compare at the ``number``-th further look (from 1) of ``--again``, with the scores there are.

    It is a single look that spends its part of the reserve. ``exploratory`` is the verdict that it
    would have at the plan's alpha, where that differs.
    """
    single = replace(plan, looks=(len(plan.seeds),), alpha=again_alpha(number))
    nominal = replace(single, alpha=plan.alpha)
    found, wider = (
        compare_rounds(run_looks(contenders, control, p, ended=plan.seeds), p)
        for p in (single, nominal)
    )
    return {
        method: replace(comparison, exploratory=_if_different(wider[method], comparison))
        for method, comparison in found.items()
    }


def _if_different(nominal: Comparison, comparison: Comparison) -> Verdict | None:
    return nominal.verdict if nominal.verdict is not comparison.verdict else None


def _last_numbers(looks: Sequence[Look], method: str) -> tuple[Look, ContenderLook] | None:
    """Return a contender's last look with an interval; None if it was left without replicates."""
    if any(method in look.missing for look in looks):
        return None
    present = [(look, look.contenders[method]) for look in looks if method in look.contenders]
    closed = [found for found in present if found[1].verdict is not None]
    with_interval = [found for found in present if found[0].critical is not None]
    return (closed or with_interval or present)[-1]


def _compare(
    look: Look, numbers: ContenderLook, p_values: RepeatedPValues, out_of_time: bool
) -> Comparison:
    total = numbers.item_variance + numbers.pooled_variance
    is_open = numbers.verdict is None
    return Comparison(
        Interval(numbers.estimate, numbers.low, numbers.high),
        p_value=max(float(2 * special.ndtr(-numbers.z)), LEAST_P),
        p_adjusted=p_values.difference(look.number, numbers.z),
        p_equivalence=p_values.equivalence(look.number, numbers.z_equivalence, numbers.rank),
        verdict=Verdict.INCONCLUSIVE if numbers.verdict is None else numbers.verdict,
        n_seeds=numbers.n_seeds,
        seed_noise_known=numbers.n_seeds > 1,
        items_needed=numbers.items_needed,
        seeds_needed=numbers.seeds_needed,
        replicates=look.replicates,
        look=look.number,
        items_share=numbers.stable_variance / total if total > 0 else None,
        floor=_floor(look, numbers),
        reason=TIME if is_open and out_of_time else numbers.reason,
    )


def _floor(look: Look, numbers: ContenderLook) -> float | None:
    """Return the half width that infinitely many replicates would leave."""
    if look.critical is None or numbers.n_seeds < 2:
        return None
    items, df = np.array([numbers.stable_variance]), np.array([numbers.item_df])
    return float(half_width(look.critical, VarianceComponents(items, df, 0 * items, 0 * df + 1))[0])
