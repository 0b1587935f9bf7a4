"""Axes of the Pareto charts: score and costs, in the units that a reader sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from bakeoff.core.format import (
    DASH,
    MIB,
    DisplayUnit,
    format_bytes,
    format_count,
    format_milliseconds,
    format_seconds,
    format_significant,
    score_unit,
)
from bakeoff.report import accelerators
from bakeoff.report.blocks import ChartAxis, PickAxis, Picker, PickPoint
from bakeoff.report.texts import lower_is_better, method_title

Method = dict[str, Any]
Numbers = tuple[float | None, ...]

EXTRA_COSTS = {
    "trainable_parameters": "trainable parameters",
    "train_seconds": "time of a whole run",
}
"""Costs that no front of the study uses but a reader can choose as an axis."""
QUALITY = "quality"

_LOG_FROM = 12.0  # ratio of largest to smallest cost above which the axis is logarithmic


@dataclass(frozen=True)
class AxisValue:
    """A method's value and interval on one axis, as numbers and as text."""

    value: float | None
    low: float | None
    high: float | None
    text: str


def cost_value(method: Method, key: str) -> float | None:
    """Return a method's cost from ``cost``, or from the method itself (forgetting)."""
    value = (method.get("cost") or {}).get(key, method.get(key))
    value = value.get("estimate") if isinstance(value, dict) else value
    return None if value is None else float(value)


def to_axis_unit(key: str, value: float) -> float:
    """Convert a cost to the unit of its axis."""
    return value / MIB if key.endswith("_bytes") else value


def cost_text(key: str, value: float) -> str:
    """Format a cost with its unit."""
    if key.endswith("_bytes"):
        return format_bytes(value)
    if key.endswith("milliseconds"):
        return format_milliseconds(value)
    return format_seconds(value) if key.endswith("_seconds") else format_significant(value)


def cost_axis(label: str, key: str, costs: list[float]) -> ChartAxis:
    """Return an axis that covers all costs; logarithmic if they span more than a decade."""
    ends = {"_bytes": "MiB", "milliseconds": "ms", "_seconds": "s"}
    unit = next((u for end, u in ends.items() if key.endswith(end)), "")
    title = f"{label} ({unit})" if unit and f"({unit}" not in label else label
    title += ", less is better"
    low, high = min(costs), max(costs)
    if low > 0 and high / low > _LOG_FROM:
        ratio = (high / low) ** 0.12
        low, high = low / ratio, high * ratio
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        steps = (1, 2, 5) if len(powers) < 4 else (1,)
        ticks = [t for p in powers for m in steps if low <= (t := m * 10.0**p) <= high]
        texts = tuple(_tick_text(t) for t in ticks)
        return ChartAxis(title, True, low, high, tuple(ticks), texts)
    padding = 0.12 * (high - low) or abs(high) * 0.5 or 1.0
    return ChartAxis(title, low=low - padding, high=high + padding)


def _tick_text(value: float) -> str:
    return format_count(value) if value >= 10_000 else f"{value:,.10g}"


def score_title(study: dict[str, Any], unit: DisplayUnit) -> str:
    """Return the axis title of the score, with its unit."""
    return f"{study.get('metric') or 'score'} ({unit.word})" if unit.word else "score"


def outlier_cutoff(values: list[float], bars: list[float], down: bool) -> float:
    """Return the score beyond which a point is an outlier: six typical deviations.

    ``bars`` are half the lengths of the intervals. ``down``: outliers lie below, else above.
    """
    centre = median(values)
    typical = max(median(abs(v - centre) for v in values), median(bars) if bars else 0.0)
    if typical == 0:
        return -math.inf if down else math.inf
    return centre - 6 * typical if down else centre + 6 * typical


def axis_picker(report: dict[str, Any], first: str) -> Picker | None:
    """Return every axis on which a method has a value, with every scored method on it.

    The initial choice is the score against ``first``, a key of ``cost``.
    """
    study, methods = report["study"], report.get("methods") or []
    scored = [m for m in methods if (m.get("score") or {}).get("estimate") is not None]
    labels = {str(e.get("cost")): str(e.get("label")) for e in report.get("pareto") or []}
    costs = {k: v for k, v in {**labels, **EXTRA_COSTS}.items() if any(cost_value(m, k) is not None
             for m in scored)}  # fmt: skip
    if not scored or first not in costs:
        return None
    unit = score_unit(study)
    readings = [(QUALITY, [_score_reading(m, unit) for m in scored])]
    readings += [
        (key, [_cost_reading(m, key, label) for m in scored]) for key, label in costs.items()
    ]
    pick_axes = [
        _quality_axis(study, unit, readings[0][1]),
        *(_cost_pick_axis(key, costs[key], values) for key, values in readings[1:]),
    ]
    chances = {str(e.get("cost")): e.get("probabilities") or {} for e in report["pareto"]}
    points = []
    for i, method in enumerate(scored):
        values = [of_axis[i] for _, of_axis in readings]
        name = str(method.get("method"))
        lacking = accelerators.missing_for_costs(method, methods)
        points.append(
            PickPoint(
                title=method_title(method),
                mark=f" {accelerators.MARK}" if lacking else "",
                control=name == study.get("control"),
                values=tuple(r.value for r in values),
                lows=tuple(r.low for r in values),
                highs=tuple(r.high for r in values),
                texts=tuple(r.text for r in values),
                chances=(None, *(chances.get(key, {}).get(name) for key in costs)),
            )
        )
    return Picker(tuple(pick_axes), tuple(points), 1 + list(costs).index(first), 0)


def _score_reading(method: Method, unit: DisplayUnit) -> AxisValue:
    score = method["score"]
    low, high = score.get("low"), score.get("high")
    return AxisValue(
        score["estimate"] * unit.factor,
        None if low is None else low * unit.factor,
        None if high is None else high * unit.factor,
        f"score {unit.with_interval(score)} {unit.word}".rstrip(),
    )


def _cost_reading(method: Method, key: str, label: str) -> AxisValue:
    value = cost_value(method, key)
    text = DASH if value is None else cost_text(key, value)
    return AxisValue(
        None if value is None else to_axis_unit(key, value), None, None, f"{label}: {text}"
    )


def _quality_axis(
    study: dict[str, Any], unit: DisplayUnit, axis_values: list[AxisValue]
) -> PickAxis:
    """Return the score's axis; as a y axis it leaves out outliers, which would compress it."""
    down = not lower_is_better(study)
    values = [r.value for r in axis_values if r.value is not None]
    bars = [(r.high - r.low) / 2 for r in axis_values if r.low is not None and r.high is not None]
    edge = outlier_cutoff(values, bars, down)
    near = [r for r in axis_values if r.value is not None and (r.value >= edge) == down]
    near = near or [r for r in axis_values if r.value is not None]
    title = score_title(study, unit)
    direction = "more is better" if down else "less is better"
    low, high = _extent(near)
    wide_low, wide_high = _extent(axis_values)
    padding, wide = 0.06 * (high - low) or 1.0, 0.08 * (wide_high - wide_low) or 1.0
    more = len(near) < len(axis_values)
    below, above = (3 if more and down else 1), (3 if more and not down else 1)
    return PickAxis(
        QUALITY,
        capitalize(str(study.get("metric") or "score")),
        1 if down else -1,
        ChartAxis(f"{title}, {direction}", low=wide_low - wide, high=wide_high + wide),
        ChartAxis(title, low=low - below * padding, high=high + above * padding),
    )


def _extent(axis_values: list[AxisValue]) -> tuple[float, float]:
    ends = [x for r in axis_values for x in (r.value, r.low, r.high) if x is not None]
    return min(ends), max(ends)


def _cost_pick_axis(key: str, label: str, axis_values: list[AxisValue]) -> PickAxis:
    axis = cost_axis(label, key, [r.value for r in axis_values if r.value is not None])
    return PickAxis(key, capitalize(label), -1, axis, axis)


def capitalize(text: str) -> str:
    """Return a text with its first letter in upper case; the rest is kept."""
    return text[:1].upper() + text[1:]
