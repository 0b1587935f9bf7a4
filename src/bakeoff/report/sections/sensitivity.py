"""Sensitivity: each method's validation loss and score by learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from bakeoff.core.format import (
    DisplayUnit,
    format_learning_rate,
    format_setting,
    format_significant,
    format_status,
    score_unit,
)
from bakeoff.report.blocks import (
    Cell,
    Chart,
    ChartAxis,
    Column,
    Grid,
    Pane,
    SectionView,
    Series,
    TableBlock,
    TableRow,
)
from bakeoff.report.texts import method_title

ORDER = 60
TITLE = "Sensitivity to the learning rate"

_MAX_LABELS, _MIN_LABEL_SPAN = 5, 0.7
"""Largest number of rates with their rates tick, and the share of the axis they must span."""
_OUTLIER_DEVIATIONS = 4.0
"""Number of typical deviations beyond which a stopped run lies outside its panel."""
_LOSS, _SCORE = "validation_loss", "validation_score"


@dataclass(frozen=True)
class _Range:
    low: float
    high: float


def build(report: dict[str, Any]) -> SectionView:
    """Show a small chart for each method, all with the same vertical axes."""
    methods = [m for m in report.get("methods") or [] if _settings_with_rate(m)]
    if not methods:
        return SectionView()
    unit = score_unit(report["study"])
    ranges = {
        _LOSS: _shared_range(methods, _LOSS, 1.0),
        _SCORE: _shared_range(methods, _SCORE, unit.factor),
    }
    name = report["study"].get("control")
    control = next((m for m in methods if m.get("method") == name), None)
    charts = [_chart(m, None if m is control else control, unit, ranges) for m in methods]
    drawn = tuple(c for c in charts if c is not None)
    grid = Grid(drawn, size="small", sheet="sensitivity")
    lead = (
        "Measured on validation, one run per point. The filled point is the chosen setting; a "
        "cross is a run without a result (it diverged or failed). A curve with a flat bottom and "
        "its best point inside the range means that the method is easy to tune. The grey line is "
        "the control's curve. All panels have the same vertical axes."
    )
    return SectionView((grid, _table(methods, unit)), lead)


def _settings_with_rate(method: dict[str, Any]) -> list[dict[str, Any]]:
    settings = method.get("settings") or []
    rated = [s for s in settings if (s.get("setting") or {}).get("learning_rate")]
    return sorted(rated, key=lambda s: float(s["setting"]["learning_rate"]))


def _shared_range(methods: list[dict[str, Any]], key: str, factor: float) -> _Range | None:
    # Diverged runs, and stopped runs far from the rest, would compress all panels; stopped runs
    # close to the rest belong to the curve.
    results = [
        (s[key] * factor, s.get("status"))
        for m in methods
        for s in _settings_with_rate(m)
        if s.get(key) is not None and s.get("status") in ("done", "stopped")
    ]
    centre = median(v for v, _ in results) if results else 0.0
    typical = median(abs(v - centre) for v, _ in results) if results else 0.0
    values = [
        v
        for v, status in results
        if status == "done" or abs(v - centre) <= _OUTLIER_DEVIATIONS * typical
    ]
    if not values:
        return None
    padding = 0.08 * (max(values) - min(values)) or 0.5
    return _Range(min(values) - padding, max(values) + padding)


def _chart(
    method: dict[str, Any],
    control: dict[str, Any] | None,
    unit: DisplayUnit,
    ranges: dict[str, _Range | None],
) -> Chart | None:
    panes = (
        _pane(method, control, _LOSS, "loss", 1.0, ranges[_LOSS]),
        _pane(method, control, _SCORE, "score", unit.factor, ranges[_SCORE]),
    )
    drawn = tuple(p for p in panes if p is not None)
    if not drawn:
        return None
    axis = _rate_axis(_rates(method), _rates(control) if control else [])
    return Chart(
        key=f"sensitivity-{method.get('method')}",
        title=method_title(method),
        description="validation loss and score by learning rate",
        x=axis,
        panes=drawn,
        size="small",
    )


def _rates(method: dict[str, Any]) -> list[float]:
    return sorted({float(s["setting"]["learning_rate"]) for s in _settings_with_rate(method)})


def _rate_axis(rates: list[float], behind: list[float]) -> ChartAxis:
    """Return an axis over the method's rates and the control's.

    Ticks are the method's rates if these are few and span most of the axis, else powers of ten.
    """
    low, high = min(rates + behind), max(rates + behind)
    ratio = (high / low) ** 0.12 if high > low else 2.0
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [p for p in (10.0**n for n in powers) if low / ratio <= p <= high * ratio]
    spans = math.log(rates[-1] / rates[0]) >= _MIN_LABEL_SPAN * math.log(high / low)
    ticks = tuple(rates if len(rates) <= _MAX_LABELS and spans else decades or rates)
    texts = tuple(format_learning_rate(r) for r in ticks)
    return ChartAxis("learning rate", True, low / ratio, high * ratio, ticks, texts)


def _pane(
    method: dict[str, Any],
    control: dict[str, Any] | None,
    key: str,
    name: str,
    factor: float,
    shared: _Range | None,
) -> Pane | None:
    if shared is None:
        return None
    tried = [s for s in _settings_with_rate(method) if s.get(key) is not None]
    chosen = [s for s in tried if s.get("chosen")]
    series = [
        _series("tried", "tried", tried, key, factor, draw="both"),
        _series("chosen", "chosen", chosen, key, factor, draw="points"),
    ]
    if control is not None:
        reference = [s for s in _settings_with_rate(control) if s.get(key) is not None]
        series.insert(0, _series("control", "reference", reference, key, factor, draw="line"))
    series.append(_failed_runs(method, key, shared))
    axis = ChartAxis(name, low=shared.low, high=shared.high)
    return Pane(axis, tuple(s for s in series if s.x))


def _failed_runs(method: dict[str, Any], key: str, shared: _Range) -> Series:
    """Mark the runs without a value at the worse edge of the panel."""
    lost = [s for s in _settings_with_rate(method) if s.get(key) is None]
    share = 0.9 if key == _LOSS else 0.1
    edge = shared.low + share * (shared.high - shared.low)
    return Series(
        "no result",
        "lost",
        tuple(float(s["setting"]["learning_rate"]) for s in lost),
        (edge,) * len(lost),
        hover=tuple((format_setting(s["setting"]), format_status(s.get("status"))) for s in lost),
    )


def _series(
    name: str, role: str, settings: list[dict[str, Any]], key: str, factor: float, draw: str
) -> Series:
    return Series(
        name,
        role,
        tuple(float(s["setting"]["learning_rate"]) for s in settings),
        tuple(s[key] * factor for s in settings),
        draw=draw,
        hover=tuple(
            (format_setting(s["setting"]), f"{key.replace('_', ' ')} {s[key] * factor:.4g}")
            for s in settings
        ),
    )


def _table(methods: list[dict[str, Any]], unit: DisplayUnit) -> TableBlock:
    rows = [
        TableRow(
            (
                Cell(method_title(m)),
                Cell(format_setting(s.get("setting"))),
                Cell(format_significant(s.get(_LOSS), 4)),
                Cell(unit.plain(s.get(_SCORE))),
                Cell(format_status(s.get("status"))),
                Cell("chosen" if s.get("chosen") else ""),
            )
        )
        for m in methods
        for s in _settings_with_rate(m)
    ]
    columns = (
        Column("Method"),
        Column("Setting"),
        Column("Validation loss", True, "nats"),
        Column("Validation score", True, unit.word or None),
        Column("Status"),
        Column(""),
    )
    return TableBlock(
        "The same data as a table", columns, tuple(rows), folded=True, sheet="sensitivity"
    )
