"""Pareto front: the methods that no other beats on every axis, and the probability of each.

A front is computed from the point estimates. The probability of being on it is the share of
resampled studies in which a method is: scores are resampled over seeds and items, paired as in the
verdicts; costs stay as measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.bootstrap import (
    DRAWS,
    Effect,
    Scores,
    bootstrap,
    difference_effect,
    mean_effect,
    pool_seed_noise,
)
from bakeoff.analysis.compare import TIE

COST_TIE = 0.05
"""Costs within this share are equal: repeated measurements of one probe differ by as much."""

Row = dict[str, Any]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

QUALITY = "quality"


@dataclass(frozen=True)
class CostAxis:
    """A cost on which methods are compared; less is better. ``name`` is its name in study files.

    ``key`` is a key of ``cost`` in the report, or of the method's row itself.
    """

    name: str
    key: str
    label: str


COST_AXES = {
    axis.name: axis
    for axis in (
        CostAxis("memory", "train_peak_bytes", "peak training memory"),
        CostAxis("speed", "step_milliseconds", "time of a training step"),
        CostAxis("size", "adapter_bytes", "size of the adapter"),
        CostAxis("forgetting", "forgetting", "forgetting"),
    )
}


def axis_value(row: Row, axis: CostAxis) -> float | None:
    """Return a method's value on an axis; None where it was not measured."""
    value = row["cost"].get(axis.key, row.get(axis.key))
    if isinstance(value, Mapping):
        value = value.get("estimate")
    return float(value) if value is not None and math.isfinite(value) else None


def is_cost_tie(one: FloatArray | float, other: FloatArray | float) -> Any:
    """Return whether two costs are within ``COST_TIE`` of the smaller one; works on arrays.

    Repeated measurements by a cost probe differ by as much, so such a difference says nothing about
    the methods. Bytes are exact, but 5 % of them does not matter for a choice.
    """
    least = np.minimum(np.abs(one), np.abs(other))
    return np.abs(np.asarray(one) - other) <= COST_TIE * least + TIE


def pareto_front(
    scores: Mapping[str, float | None], *costs: Mapping[str, float | None], better: str
) -> list[str]:
    """Return the methods on the front over the score and each of ``costs``, cheapest first.

    A lower cost is better. Ties are kept; methods with a missing value are left out.
    """
    points: dict[str, list[float]] = {}
    for method, score in scores.items():
        values = [score, *(cost.get(method) for cost in costs)]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if len(known) == len(values):
            points[method] = known
    if not points:
        return []
    maximise = [better == "higher", *(False for _ in costs)]
    table = np.array(list(points.values()), dtype=np.float64)
    keep = moocore.is_nondominated(table, maximise=maximise, keep_weakly=True)
    front = [method for method, kept in zip(points, keep, strict=True) if kept]
    return sorted(front, key=lambda method: points[method][1])


def front_probabilities(drawn: FloatArray, costs: FloatArray, *, better: str) -> FloatArray:
    """Return the share of draws in which each method is on the front, ``[methods]``.

    ``drawn`` is ``[methods, draws]`` of scores, ``costs`` ``[methods, axes]``. A method is beaten
    by one that costs no more on any axis (up to ``is_cost_tie``) and that scores higher, or scores
    the same and costs less on some axis.
    """
    scores = drawn if better == "higher" else -drawn
    cheaper = (costs[:, None] < costs[None]) & ~is_cost_tie(costs[:, None], costs[None])
    less_somewhere: BoolArray = cheaper.any(axis=2)
    probabilities = np.empty(len(scores))
    for method in range(len(scores)):
        rivals = ~less_somewhere[method]
        rivals[method] = False
        beaten = (scores[rivals] > scores[method] + TIE).any(axis=0)
        rivals &= less_somewhere[:, method]
        beaten |= (scores[rivals] >= scores[method] - TIE).any(axis=0)
        probabilities[method] = 1 - beaten.mean()
    return probabilities


@dataclass(frozen=True)
class Fronts:
    """The fronts of a study, as the report has them.

    ``plots`` is its ``pareto``, the score against each cost; ``joint`` is its ``front``, over all
    axes. ``probabilities`` belong to the joint front, by method.
    """

    plots: list[dict[str, Any]]
    joint: dict[str, Any]
    probabilities: dict[str, float]


def find_fronts(
    rows: Sequence[Row],
    draws: Mapping[str, FloatArray],
    axes: Sequence[str] | None,
    *,
    better: str,
) -> Fronts:
    """Find the front over all axes at once and that of the score against each cost.

    ``draws`` are resampled scores by method; without them there are no probabilities. ``axes`` are
    the study's, including quality; None means all. A cost that no method has is not an axis.
    """
    wanted = [COST_AXES[name] for name in axes or COST_AXES if name != QUALITY]
    scored = [row for row in rows if row["score"]]
    measured = [a for a in wanted if any(axis_value(row, a) is not None for row in scored)]
    joint = _build_front(scored, measured, draws, better)
    plots = [
        {
            "cost": a.key,
            "label": a.label,
            "axis": a.name,
            **_build_front(scored, [a], draws, better),
        }
        for a in wanted
    ]
    header = {
        "axes": [QUALITY, *(a.name for a in measured)],
        "not_measured": [a.name for a in wanted if a not in measured],
        "draws": DRAWS if draws else None,
        "cost_tie": COST_TIE,
    }
    return Fronts(plots, {**header, **joint}, joint["probabilities"])


def draw_scores(
    scores: Mapping[str, Scores], control: str, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Draw every method's score, relative to the control where it has one, ``[draws]`` each.

    Only the order of the scores matters here. Differences are paired by seed, as in the verdicts,
    so that a seed's effect on all methods alike does not change their order.
    """
    if control not in scores:
        return _draws_by_method(scores, [mean_effect(s) for s in scores.values()], rng)
    contenders = {m: s for m, s in scores.items() if m != control}
    effects = [difference_effect(s, scores[control]) for s in contenders.values()]
    return {control: np.zeros(DRAWS)} | _draws_by_method(contenders, pool_seed_noise(effects), rng)


def _draws_by_method(
    methods: Iterable[str], effects: Sequence[Effect], rng: np.random.Generator
) -> dict[str, FloatArray]:
    return dict(zip(methods, bootstrap(effects, rng), strict=True)) if effects else {}


def _build_front(
    rows: Sequence[Row], axes: Sequence[CostAxis], draws: Mapping[str, FloatArray], better: str
) -> dict[str, Any]:
    """Return one front: its methods, the probability of each, and the methods left out."""
    costs = {a.name: {r["method"]: axis_value(r, a) for r in rows} for a in axes}
    missing = {
        r["method"]: unmeasured
        for r in rows
        if (unmeasured := [a.name for a in axes if costs[a.name][r["method"]] is None])
    }
    complete = [r["method"] for r in rows if r["method"] not in missing] if axes else []
    scores = {r["method"]: r["score"]["estimate"] for r in rows if r["method"] in complete}
    chances: dict[str, float] = {}
    if complete and draws:
        table = np.array([[costs[a.name][m] for a in axes] for m in complete], dtype=np.float64)
        drawn = np.stack([draws[m] for m in complete])
        shares = front_probabilities(drawn, table, better=better)
        chances = dict(zip(complete, shares.tolist(), strict=True))
    return {
        "front": pareto_front(scores, *costs.values(), better=better) if axes else [],
        "probabilities": chances,
        "left_out": missing,
    }
