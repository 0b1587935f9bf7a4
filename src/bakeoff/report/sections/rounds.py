"""Rounds: how each contender's interval narrowed from look to look, and what limits it."""

from __future__ import annotations

from typing import Any

from bakeoff.core.format import DASH, DisplayUnit, format_percent, plural, score_unit
from bakeoff.report.blocks import (
    BarRow,
    Bars,
    BarSegment,
    Block,
    Cell,
    Chart,
    ChartAxis,
    Column,
    Grid,
    LegendEntry,
    Pane,
    SectionView,
    Series,
    TableBlock,
    TableRow,
)
from bakeoff.report.evidence_texts import contenders, looks_text, most_replicates
from bakeoff.report.texts import method_title, verdict_text

ORDER = 25
TITLE = "Looks at the results"

Look = dict[str, Any]

_COLUMNS = (
    Column("Look", True),
    Column("Replicates", True),
    Column("Open", False, "analysed at this look"),
    Column("Closed", False, "by this look"),
    Column("Information", True, "share of that at the last look"),
    Column("Error spent", True, "so far"),
    Column("Critical value", True, "standard errors"),
)


def build(report: dict[str, Any]) -> SectionView:
    """Show the estimates by replicates, the parts of their variance, and a row for each look."""
    rounds = report.get("rounds") or {}
    looks = rounds.get("looks") or []
    if not looks:
        return SectionView()
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    blocks: list[Block] = []
    charts = [_chart(m, looks, report) for m in contenders(report)]
    if len(looks) > 1 and (drawn := tuple(c for c in charts if c is not None)):
        blocks.append(Grid(drawn, size="small", sheet="looks"))
    blocks += _variance_bars(report)
    rows = tuple(_row(look, titles) for look in looks)
    blocks.append(TableBlock("Every look", _COLUMNS, rows, folded=len(looks) > 1, sheet="looks"))
    return SectionView(tuple(blocks), _lead(report, rounds))


def _lead(report: dict[str, Any], rounds: dict[str, Any]) -> str:
    if rounds.get("mode") == "fixed":
        used = plural(most_replicates(report) or 0, "replicate")
        return f"The results were analysed once, after {used}, as planned."
    planned = [str(n) for n in rounds.get("planned") or []]
    return (
        f"Replicates are added until a contender is settled; looks were planned at "
        f"{', '.join(planned)} replicates. Looks so far: {looks_text(report)}. Each look costs a "
        "part of the error, so a verdict at an early look needs more evidence. The bars are the "
        "intervals at each look, the thick line is the control, thin lines are the margin."
    )


def _chart(method: dict[str, Any], looks: list[Look], report: dict[str, Any]) -> Chart | None:
    """Draw a contender's estimate and interval at each of its looks."""
    study, name = report["study"], str(method.get("method"))
    unit, margin = score_unit(study), study.get("margin")
    known = [
        (int(look["replicates"]), at)
        for look in looks
        if (at := (look.get("contenders") or {}).get(name)) and at.get("estimate") is not None
    ]
    if not known:
        return None
    last = float(most_replicates(report) or known[-1][0])
    across = (0.0, 1.08 * last)
    lines = [Series("control", "reference", across, (0.0, 0.0), draw="line")]
    for end in () if margin is None else (-margin, margin):
        level = end * unit.factor
        lines.append(Series("margin", "behind", across, (level, level), draw="line"))
    planned = tuple(float(n) for n in (report["rounds"].get("planned") or ()))
    axis = ChartAxis("replicates", low=across[0], high=across[1], ticks=planned,
                     tick_text=tuple(f"{n:.0f}" for n in planned))  # fmt: skip
    return Chart(
        key=f"looks-{name}",
        title=method_title(method),
        description=f"{verdict_text(method)} after {plural(known[-1][0], 'replicate')}",
        x=axis,
        panes=(Pane(_axis(known, unit, margin), (*lines, _points(known, unit))),),
        size="small",
    )


def _points(known: list[tuple[int, dict[str, Any]]], unit: DisplayUnit) -> Series:
    def ends(key: str) -> tuple[float | None, ...]:
        values = (at.get(key) for _, at in known)
        return tuple(None if v is None else v * unit.factor for v in values)

    return Series(
        "difference",
        "chosen",
        tuple(float(n) for n, _ in known),
        tuple(at["estimate"] * unit.factor for _, at in known),
        draw="both",
        low=ends("low"),
        high=ends("high"),
        hover=tuple(
            (
                plural(n, "replicate"),
                unit.with_interval(at, signed=True),
                at.get("verdict") or "open",
            )
            for n, at in known
        ),
    )


def _axis(
    known: list[tuple[int, dict[str, Any]]], unit: DisplayUnit, margin: float | None
) -> ChartAxis:
    """Return an axis that shows all intervals, zero and the margin."""
    ends = [
        at[key] for _, at in known for key in ("estimate", "low", "high") if at.get(key) is not None
    ]
    ends += [0.0] if margin is None else [-margin, margin]
    padding = 0.08 * (max(ends) - min(ends)) or 0.01
    low, high = min(ends) - padding, max(ends) + padding
    return ChartAxis(unit.word or "difference", low=low * unit.factor, high=high * unit.factor)


def _variance_bars(report: dict[str, Any]) -> list[Block]:
    """Show the share of the items in each contender's variance, and the floor of its interval."""
    unit = score_unit(report["study"])
    rows = []
    for method in contenders(report):
        share, floor = (method["difference"].get(key) for key in ("items_share", "floor"))
        if share is None:
            continue
        cut = round(100 * share, 3)
        pieces = (BarSegment("base", 0.0, cut), BarSegment("added", cut, 100.0))
        limit = "" if floor is None else f", floor ±{unit.plain(floor)} {unit.word}".rstrip()
        rows.append(BarRow(method_title(method), pieces, f"items {format_percent(share)}{limit}"))
    if not rows:
        return []
    keys = (LegendEntry("base", "test items"), LegendEntry("added", "seeds, search included"))
    label = "Shares of the variance, and the floor: the interval with any number of seeds"
    return [Bars(label, keys, tuple(rows))]


def _row(look: Look, titles: dict[Any, str]) -> TableRow:
    found = look.get("contenders") or {}
    settled = [
        f"{titles.get(name, name)} {at['verdict']}"
        for name, at in found.items()
        if at.get("verdict")
    ]
    cells = (
        Cell(str(look.get("number")), look.get("number")),
        Cell(str(look.get("replicates")), look.get("replicates")),
        Cell(", ".join(str(titles.get(n, n)) for n in look.get("open") or ()) or DASH, long=True),
        Cell(", ".join(settled) or DASH, long=True),
        Cell(format_percent(look.get("information"))),
        Cell(_percent(look.get("spent"))),
        Cell(DASH if look.get("critical") is None else f"{look['critical']:.2f}"),
    )
    return TableRow(cells)


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.2f} %"
