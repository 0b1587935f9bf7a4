"""Pareto fronts: score against each cost, and the probability of being on the front."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bakeoff.core.format import DisplayUnit, format_percent, plural, score_unit
from bakeoff.report import accelerators, axes
from bakeoff.report.axes import capitalize
from bakeoff.report.blocks import (
    Block,
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
    Text,
)
from bakeoff.report.texts import lower_is_better, method_title

ORDER = 30
TITLE = "Score against cost"

_LABEL = 20  # maximum length of a label that report.js draws


@dataclass(frozen=True)
class _Point:
    name: str
    title: str
    chance: float | None
    cost: float
    score: float
    low: float | None
    high: float | None
    hover: tuple[str, ...]


def build(report: dict[str, Any]) -> SectionView:
    """Show a chart with selectable axes, one chart for each other cost, then the probabilities."""
    charts = [_chart(report, entry) for entry in report.get("pareto") or []]
    drawn = tuple(c for c in charts if c is not None)
    if not drawn:
        return SectionView((Text("No method has both a score and a measured cost.", "muted"),))
    picked = dataclasses.replace(
        drawn[0],
        picker=axes.axis_picker(report, drawn[0].key.removeprefix("pareto-")),
        sheet="pareto",
    )
    blocks: list[Block] = [picked, *([Grid(drawn[1:])] if drawn[1:] else [])]
    table = _chance_table(report)
    blocks += [table] if table else []
    note = accelerators.footnote(report.get("methods") or [], accelerators.missing_for_costs)
    notes = [*_omissions(report), *([] if note is None else [note])]
    blocks += [Text(text, "muted") for text in notes]
    lead = (
        "You can choose the axes of the first chart. A method on the front (filled, connected by "
        "the line) is not beaten by any other in both score and cost. The diamond is the control; "
        "vertical bars are 95 % intervals of the score. A triangle at the edge is a method whose "
        "score lies outside the plot, labelled with that score."
    )
    if table:
        lead += (
            " A percentage is the probability of being on that front if the study were repeated "
            "with other seeds and test items; costs within 5 % of each other count as equal, "
            "because repeated measurements of one cost differ by as much."
        )
    return SectionView(tuple(blocks), lead)


def _chance_table(report: dict[str, Any]) -> TableBlock | None:
    """Return every method's probability of being on the front over all axes and on each chart's."""
    joint = report.get("front") or {}
    fronts = [("All axes", ", ".join(joint.get("axes") or ()), joint)] + [
        (capitalize(str(e.get("label") or e.get("cost"))), "with the score", e)
        for e in report.get("pareto") or []
    ]
    fronts = [(title, hint, f) for title, hint, f in fronts if f.get("probabilities")]
    methods = [
        m
        for m in report.get("methods") or []
        if any(str(m.get("method")) in f["probabilities"] for _, _, f in fronts)
    ]
    if not methods:
        return None
    control = report["study"].get("control")
    columns = (Column("Method"), *(Column(title, True, hint) for title, hint, _ in fronts))
    rows = [
        TableRow(
            (Cell(method_title(m)), *(_chance_cell(m, f) for _, _, f in fronts)),
            pinned=m.get("method") == control,
        )
        for m in methods
    ]
    caption = "Probability of being on the front"
    return TableBlock(caption, columns, tuple(rows), sortable=True, sheet="pareto")


def _chance_cell(method: dict[str, Any], front: dict[str, Any]) -> Cell:
    value = front["probabilities"].get(str(method.get("method")))
    return Cell(format_percent(value), value)


def _omissions(report: dict[str, Any]) -> list[str]:
    """Name the missing axes and the methods left out of the front over all axes."""
    joint = report.get("front") or {}
    missing, out = joint.get("not_measured") or [], joint.get("left_out") or {}
    titles = {str(m.get("method")): method_title(m) for m in report.get("methods") or []}
    sentences = []
    if missing:
        sentences.append(f"Not measured, and so not an axis of the front: {', '.join(missing)}.")
    if out:
        listed = ", ".join(f"{titles.get(m, m)} (no {', '.join(a)})" for m, a in out.items())
        sentences.append(
            f"Left out of the front over all axes for lack of a measurement: {listed}."
        )
    return sentences


def _chart(report: dict[str, Any], entry: dict[str, Any]) -> Chart | None:
    study, key = report["study"], str(entry.get("cost"))
    unit = score_unit(study)
    methods = report.get("methods") or []
    points = [
        p
        for m in methods
        if (p := _point(m, entry, unit, accelerators.missing_for_costs(m, methods))) is not None
    ]
    if not points:
        return None
    front = [str(name) for name in entry.get("front") or []]
    label = str(entry.get("label") or key)
    on_front = ", ".join(p.title for p in points if p.name in front) or "none"
    return Chart(
        key=f"pareto-{key}",
        title=f"Score against {label}",
        description=f"{plural(len(points), 'method')}; on the front: {on_front}",
        x=axes.cost_axis(label, key, [p.cost for p in points]),
        panes=(_pane(points, front, study, unit),),
    )


def _point(
    method: dict[str, Any], entry: dict[str, Any], unit: DisplayUnit, lacking: list[str]
) -> _Point | None:
    """Return a method's point; its title is marked if its cost lacked an accelerator."""
    score, key = method.get("score") or {}, str(entry.get("cost"))
    cost = axes.cost_value(method, key)
    if cost is None or score.get("estimate") is None:
        return None
    mark = f" {accelerators.MARK}" if lacking else ""
    title = method_title(method) + mark
    chance = (entry.get("probabilities") or {}).get(str(method.get("method")))
    hover = [
        title,
        f"score {unit.with_interval(score)} {unit.word}".rstrip(),
        axes.cost_text(key, cost),
    ]
    if chance is not None:
        hover.append(f"on this front with probability {format_percent(chance)}")
    if lacking:
        hover.append(f"measured without {', '.join(lacking)}, which others had")
    low, high = score.get("low"), score.get("high")
    return _Point(
        name=str(method.get("method")),
        title=title,
        chance=chance,
        cost=axes.to_axis_unit(key, cost),
        score=score["estimate"] * unit.factor,
        low=None if low is None else low * unit.factor,
        high=None if high is None else high * unit.factor,
        hover=tuple(hover),
    )


def _label(point: _Point) -> str:
    """Return a point's label: its name, shortened to leave room for mark and probability."""
    if point.chance is None:
        return point.title
    mark = f" {accelerators.MARK}" if point.title.endswith(accelerators.MARK) else ""
    name, end = point.title.removesuffix(mark), f"{mark} {format_percent(point.chance)}"
    limit = _LABEL - len(end)
    return (name if len(name) <= limit else name[: limit - 1].rstrip() + "…") + end


def _pane(points: list[_Point], front: list[str], study: dict[str, Any], unit: DisplayUnit) -> Pane:
    """Return the points; outliers become triangles at the edge, so that the rest stays legible."""
    control, down = study.get("control"), not lower_is_better(study)
    cut = _outlier_cutoff(points, down)
    near = [p for p in points if (p.score >= cut if down else p.score <= cut)]
    far = [p for p in points if p not in near]
    axis = _score_axis(study, unit, near, bool(far), down)
    on_front = sorted((p for p in points if p.name in front), key=lambda p: p.cost)
    line = Series(
        "Pareto front",
        "front-line",
        tuple(p.cost for p in on_front),
        tuple(p.score for p in on_front),
        draw="line",
    )
    rest = [p for p in near if p.name not in front and p.name != control]
    groups = (
        _markers("not on the front", "other", rest),
        _markers(
            "on the front", "front", [p for p in near if p.name in front and p.name != control]
        ),
        _markers("control", "control", [p for p in near if p.name == control]),
        _outliers(far, axis, unit, down),
    )
    return Pane(axis, (line, *(s for s in groups if s.x)))


def _outlier_cutoff(points: list[_Point], down: bool) -> float:
    bars = [(p.high - p.low) / 2 for p in points if p.low is not None and p.high is not None]
    return axes.outlier_cutoff([p.score for p in points], bars, down)


def _score_axis(
    study: dict[str, Any], unit: DisplayUnit, near: list[_Point], more: bool, down: bool
) -> ChartAxis:
    low = min(p.score if p.low is None else p.low for p in near)
    high = max(p.score if p.high is None else p.high for p in near)
    padding = 0.06 * (high - low) or 1.0
    title = axes.score_title(study, unit)
    below, above = (3, 1) if down else (1, 3)  # extra space for the triangles
    low, high = low - padding * (below if more else 1), high + padding * (above if more else 1)
    return ChartAxis(title, low=low, high=high)


def _outliers(far: list[_Point], axis: ChartAxis, unit: DisplayUnit, down: bool) -> Series:
    low, high = axis.low or 0.0, axis.high or 0.0  # _score_axis always sets both
    share = 0.05 if down else 0.95
    return Series(
        "outside the plot",
        "beyond" if down else "beyond-up",
        tuple(p.cost for p in far),
        (low + share * (high - low),) * len(far),
        labels=tuple(f"{p.title} {unit.plain(p.score / unit.factor)}" for p in far),
        hover=tuple(p.hover for p in far),
    )


def _markers(name: str, role: str, points: list[_Point]) -> Series:
    return Series(
        name,
        role,
        tuple(p.cost for p in points),
        tuple(p.score for p in points),
        low=tuple(p.low for p in points),
        high=tuple(p.high for p in points),
        labels=tuple(_label(p) for p in points),
        hover=tuple(p.hover for p in points),
    )
