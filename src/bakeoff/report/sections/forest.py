"""Forest plot: every method's difference to the control with its interval.

It is inline SVG and needs no script. A method without a difference has a row with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from bakeoff.core.format import MINUS, DisplayUnit, format_status, plural, score_unit
from bakeoff.report.blocks import Forest, ForestRow, SectionView, Tick, Whisker
from bakeoff.report.evidence_texts import is_replicated, seed_noun
from bakeoff.report.texts import lower_is_better, method_title, verdict_text

ORDER = 20
TITLE = "Difference to the control"

_EDGE = 4.0  # percent of the width left free on each side, for arrows and tick labels


@dataclass(frozen=True)
class Scale:
    """A map from differences to percent of the plot's width."""

    low: float
    high: float

    def percent(self, value: float) -> float:
        """Return the position of a value, clipped to the plot."""
        value = min(max(value, self.low), self.high)
        share = (value - self.low) / (self.high - self.low)
        return round(_EDGE + share * (100 - 2 * _EDGE), 3)


def build(report: dict[str, Any]) -> SectionView:
    """Show a row for every method, with the margin shaded around zero."""
    study, methods = report["study"], report.get("methods") or []
    if not methods:
        return SectionView()
    unit, margin = score_unit(study), study.get("margin")
    scale = _scale([m["difference"] for m in methods if _drawable(m)], margin)
    worse, better = "\N{LEFTWARDS ARROW} worse", "better \N{RIGHTWARDS ARROW}"
    if lower_is_better(study):
        worse, better = "\N{LEFTWARDS ARROW} better", "worse \N{RIGHTWARDS ARROW}"
    noun = seed_noun(report)
    rows = tuple(_row(m, study, scale, noun) for m in methods)
    forest = Forest(
        label=f"Difference to the control in {study.get('metric')}, {unit.word}".rstrip(", "),
        zero=scale.percent(0.0),
        band_low=None if margin is None else scale.percent(-margin),
        band_high=None if margin is None else scale.percent(margin),
        left=worse,
        right=better,
        ticks=_ticks(scale, unit) if any(r.whisker for r in rows) else (),
        rows=rows,
        sheet="differences",
    )
    return SectionView((forest,), _lead(report, unit))


def _lead(report: dict[str, Any], unit: DisplayUnit) -> str:
    margin, imported = report["study"].get("margin"), report.get("imported")
    if imported and imported["no_interval"]:
        return f"No intervals can be drawn: {imported['no_interval']}."
    over = "seeds and test items"
    if imported:
        over = "test items only, with one run per method"
    elif is_replicated(report):
        over = "replicates and test items, valid for all contenders and looks at once"
    band = (
        ""
        if margin is None
        else f" The shaded band is the margin of ±{unit.plain(margin)} "
        f"{unit.word}: differences inside it are too small to matter."
    )
    return (
        f"Each line is a simultaneous 95 % interval over {over}; the dot is the "
        "estimate. A line that crosses zero is compatible with no difference." + band
    )


def _drawable(method: dict[str, Any]) -> bool:
    difference = method.get("difference") or {}
    return all(difference.get(k) is not None for k in ("estimate", "low", "high"))


def _scale(differences: list[dict[str, Any]], margin: float | None) -> Scale:
    """Return a scale that shows everything, except outliers that would compress the rest."""
    floor = 2 * margin if margin else 0.0
    reach = [max(abs(d["low"]), abs(d["high"])) for d in differences]
    cap = max(2 * floor, 3 * median(reach)) if reach else math.inf
    low = min([-floor, *(d["low"] for d in differences)])
    high = max([floor, *(d["high"] for d in differences)])
    low, high = max(low, -cap), min(high, cap)
    return Scale(low, high) if high > low else Scale(-1.0, 1.0)


def _ticks(scale: Scale, unit: DisplayUnit) -> tuple[Tick, ...]:
    low, high = scale.low * unit.factor, scale.high * unit.factor
    rough = (high - low) / 10
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return tuple(Tick(scale.percent(v / unit.factor), _tick_text(v)) for v in values)


def _tick_text(value: float) -> str:
    text = f"{value:+.10g}".replace("-", MINUS)
    return "0" if value == 0 else text


def _row(method: dict[str, Any], study: dict[str, Any], scale: Scale, noun: str) -> ForestRow:
    unit = score_unit(study)
    verdict = method.get("verdict") or "none"
    is_control = method.get("method") == study.get("control")
    seeds = method.get("n_seeds")
    small = "" if not seeds else plural(seeds, noun)
    if is_control:
        zero = scale.percent(0.0)
        score = f"score {unit.with_interval(method['score'])}" if method.get("score") else ""
        whisker = Whisker(zero, zero, zero) if method.get("score") else None
        reason = None if whisker else _reason(method)
        return ForestRow(method_title(method), "control", "control", score, small, whisker, reason)
    estimate = (method.get("difference") or {}).get("estimate")
    if not _drawable(method) and estimate is not None:
        numbers = unit.with_interval(method["difference"], signed=True)
        early = "no interval yet: a look this early decides nothing"
        reason = str(method.get("reason") or early)
        badge = verdict_text(method)
        return ForestRow(method_title(method), verdict, badge, numbers, small, None, reason)
    if not _drawable(method):
        badge = format_status(method.get("status"))
        return ForestRow(method_title(method), "none", badge, "", small, None, _reason(method))
    difference = method["difference"]
    numbers = unit.with_interval(difference, signed=True)
    return ForestRow(
        method_title(method),
        verdict,
        verdict_text(method),
        numbers,
        small,
        _whisker(difference, scale),
    )


def _reason(method: dict[str, Any]) -> str:
    return str(method.get("reason") or "no score: nothing was measured")


def _whisker(difference: dict[str, Any], scale: Scale) -> Whisker:
    return Whisker(
        low=scale.percent(difference["low"]),
        high=scale.percent(difference["high"]),
        point=scale.percent(difference["estimate"]),
        low_clipped=difference["low"] < scale.low,
        high_clipped=difference["high"] > scale.high,
    )
