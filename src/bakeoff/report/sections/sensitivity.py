"""Sensitivity: each method's validation loss and score by learning rate.

In a study of replicates every rate has a run in each of them, most of which end at a rung. Losses
at different steps do not compare, so there is a panel for the rung and one for the end.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from bakeoff.core.format import (
    DASH,
    DisplayUnit,
    format_learning_rate,
    format_setting,
    format_significant,
    format_status,
    score_unit,
)
from bakeoff.report.blocks import (
    MOST_ROWS,
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
    table_caption,
)
from bakeoff.report.evidence_texts import is_replicated
from bakeoff.report.texts import method_title

ORDER = 60
TITLE = "Sensitivity to the learning rate"

_MAX_LABELS, _MIN_LABEL_SPAN = 5, 0.7
"""Largest number of rates with their rates tick, and the share of the axis they must span."""
_OUTLIER_DEVIATIONS = 4.0
"""Number of typical deviations beyond which a stopped run lies outside its panel."""
_LOSS, _SCORE = "validation_loss", "validation_score"
_RUNG = "rung_loss"
"""Mean validation loss over replicates at the first rung, which every run reaches."""

Rows = list[dict[str, Any]]


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
    replicated = is_replicated(report)
    rung = _first_rung(report) if replicated else None
    end = report["study"].get("steps") if replicated else None
    rows = {str(m.get("method")): _panel_rows(m, rung, end) for m in methods}
    ranges = {
        _RUNG: _shared_range([r[_RUNG] for r in rows.values()], _RUNG, 1.0),
        _LOSS: _shared_range([r[_LOSS] for r in rows.values()], _LOSS, 1.0),
        _SCORE: _shared_range([r[_SCORE] for r in rows.values()], _SCORE, unit.factor),
    }
    name = str(report["study"].get("control"))
    panels = _Panels(unit, ranges, rows.get(name), replicated, rung)
    charts = [_chart(m, rows[str(m.get("method"))], panels, name) for m in methods]
    drawn = tuple(c for c in charts if c is not None)
    grid = Grid(drawn, size="small", sheet="sensitivity")
    points = "Measured on validation, one run per point."
    chosen = "The filled point is the chosen setting"
    if replicated:
        points = (
            "Measured on validation. The early loss is the mean over all replicates at step "
            f"{rung}; the other panels have every run that was trained to the end."
        )
        chosen = "Filled points are the chosen settings"
    lead = (
        f"{points} {chosen}; a "
        "cross is a run without a result (it diverged or failed). A curve with a flat bottom and "
        "its best point inside the range means that the method is easy to tune. The grey line is "
        "the control's curve. All panels have the same vertical axes."
    )
    return SectionView((grid, _table(methods, unit, replicated)), lead)


@dataclass(frozen=True)
class _Panels:
    """Data shared by all charts: axes, the control's rows by panel, the first rung's step."""

    unit: DisplayUnit
    ranges: dict[str, _Range | None]
    control: dict[str, Rows] | None
    replicated: bool
    rung: int | None


def _first_rung(report: dict[str, Any]) -> int | None:
    rungs = (report.get("race") or {}).get("rungs") or []
    return min((int(r) for r in rungs if r is not None), default=None)


def _panel_rows(method: dict[str, Any], rung: int | None, end: int | None) -> dict[str, Rows]:
    """Return the rows of each panel; of replicates only runs to the ``end`` compare there."""
    settings = _settings_with_rate(method)
    if end is None:
        return {_RUNG: [], _LOSS: settings, _SCORE: settings}
    ended = [s for s in settings if s.get("status") != "stopped" or (s.get("step") or 0) >= end]
    return {_RUNG: _rung_means(method, rung), _LOSS: ended, _SCORE: ended}


def _rung_means(method: dict[str, Any], rung: int | None) -> Rows:
    """Return the mean loss at the rung for each rate, over the replicates."""
    losses: dict[float, list[float]] = defaultdict(list)
    for curve in method.get("curves") or []:
        at_rung = (p for p in curve.get("points") or [] if p.get("step") == rung)
        known = [p[_LOSS] for p in at_rung if p.get(_LOSS) is not None]
        if known and curve.get("learning_rate"):
            losses[float(curve["learning_rate"])].append(known[-1])
    best = (method.get("setting") or {}).get("learning_rate")
    return [
        {
            "setting": {"learning_rate": rate},
            "status": "done",
            "chosen": rate == best,
            _RUNG: fmean(losses[rate]),
        }
        for rate in sorted(losses)
    ]


def _settings_with_rate(method: dict[str, Any]) -> list[dict[str, Any]]:
    settings = method.get("settings") or []
    rated = [s for s in settings if (s.get("setting") or {}).get("learning_rate")]
    return sorted(rated, key=lambda s: float(s["setting"]["learning_rate"]))


def _shared_range(panels: list[Rows], key: str, factor: float) -> _Range | None:
    # Diverged runs, and stopped runs far from the rest, would compress all panels; stopped runs
    # close to the rest belong to the curve.
    results = [
        (s[key] * factor, s.get("status"))
        for rows in panels
        for s in rows
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
    method: dict[str, Any], rows: dict[str, Rows], panels: _Panels, control: str
) -> Chart | None:
    end = "final loss" if panels.replicated else "loss"
    names = {_RUNG: "early loss", _LOSS: end, _SCORE: "score"}
    behind = None if method.get("method") == control else panels.control
    panes = [
        _pane(rows[key], behind[key] if behind else None, key, name, panels)
        for key, name in names.items()
    ]
    drawn = tuple(p for p in panes if p is not None)
    if not drawn:
        return None
    axis = _rate_axis(_rates(_settings_with_rate(method)), _rates(behind[_LOSS]) if behind else [])
    return Chart(
        key=f"sensitivity-{method.get('method')}",
        title=method_title(method),
        description="validation loss and score by learning rate",
        x=axis,
        panes=drawn,
        size="small",
    )


def _rates(rows: Rows) -> list[float]:
    return sorted({float(s["setting"]["learning_rate"]) for s in rows})


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


def _pane(rows: Rows, control: Rows | None, key: str, name: str, panels: _Panels) -> Pane | None:
    shared, factor = panels.ranges[key], panels.unit.factor if key == _SCORE else 1.0
    if shared is None:
        return None
    # several replicates have a run at the same rate: no line leads from one to the next
    means = not panels.replicated or key == _RUNG
    tried = [s for s in rows if s.get(key) is not None]
    chosen = [s for s in tried if s.get("chosen")]
    series = [
        _series("tried", "tried", tried, key, factor, draw="both" if means else "points"),
        _series("chosen", "chosen", chosen, key, factor, draw="points"),
    ]
    if control is not None and means:
        reference = [s for s in control if s.get(key) is not None]
        series.insert(0, _series("control", "reference", reference, key, factor, draw="line"))
    series.append(_failed_runs(rows, key, shared))
    axis = ChartAxis(name, low=shared.low, high=shared.high)
    return Pane(axis, tuple(s for s in series if s.x))


def _failed_runs(rows: Rows, key: str, shared: _Range) -> Series:
    """Mark the runs without a value at the worse edge of the panel."""
    lost = [s for s in rows if s.get(key) is None]
    share = 0.1 if key == _SCORE else 0.9
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


def _table(methods: list[dict[str, Any]], unit: DisplayUnit, replicated: bool) -> TableBlock:
    def where(entry: dict[str, Any]) -> tuple[Cell, ...]:
        step = entry.get("step")
        return (Cell(str(entry.get("seed"))), Cell(DASH if step is None else f"{step:,}"))

    rows = [
        TableRow(
            (
                Cell(method_title(m)),
                *(where(s) if replicated else ()),
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
        *((Column("Seed", True), Column("Step", True, "reached")) if replicated else ()),
        Column("Setting"),
        Column("Validation loss", True, "nats"),
        Column("Validation score", True, unit.word or None),
        Column("Status"),
        Column(""),
    )
    return TableBlock(
        table_caption("The same data as a table", len(rows)),
        columns,
        tuple(rows[:MOST_ROWS]),
        folded=True,
        sheet="sensitivity",
    )
