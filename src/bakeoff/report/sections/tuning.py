"""Tuning: the learning rate that each replicate chose, the control's, and the output layer's."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bakeoff.core.format import (
    DASH,
    format_learning_rate,
    format_setting,
    format_significant,
    score_unit,
)
from bakeoff.report.blocks import (
    BarRow,
    Bars,
    BarSegment,
    Block,
    Cell,
    Column,
    LegendEntry,
    SectionView,
    TableBlock,
    TableRow,
    Text,
)
from bakeoff.report.evidence_texts import control_tuning_text, head_text
from bakeoff.report.texts import method_title

ORDER = 52
TITLE = "Was every method tuned well?"

_SHADES = 5
"""Number of shades between the lowest and the highest learning rate tried."""
_STOOD_IN = {
    "base": "all settings diverged; the base model's scores stand for it",
    "constant": "all settings diverged; the best constant answer's scores stand for it",
}

Method = dict[str, Any]


def build(report: dict[str, Any]) -> SectionView:
    """Show which settings the replicates chose; empty without replicates."""
    methods = [m for m in report.get("methods") or [] if _chosen_rates(m)]
    if not methods:
        return SectionView()
    blocks: list[Block] = []
    if text := control_tuning_text(report):
        tone = "plain" if report["control_tuning"].get("well_tuned") else "warning"
        blocks.append(Text(f"The control was {text}.", tone))
    keys = (LegendEntry("rate-0", "lowest rate tried"), LegendEntry("rate-4", "highest rate tried"))
    rows = tuple(BarRow(method_title(m), _pieces(m), _counts(m)) for m in methods)
    blocks.append(Bars("Learning rates that the replicates chose", keys, rows))
    if text := _stood_in_text(methods):
        blocks.append(Text(text, "warning"))
    blocks.append(_replicate_table(methods, report["study"]))
    blocks += _head(report)
    lead = (
        "Every replicate tunes every method again, on validation only, and no choice is shared "
        "between replicates. Where they agree, another run will find the same rate. Use the "
        "recommended one: it was chosen most often."
    )
    return SectionView(tuple(blocks), lead)


def _chosen_rates(method: Method) -> list[float]:
    settings = (s.get("setting") or {} for s in method.get("seeds") or [])
    return [float(rate) for s in settings if (rate := s.get("learning_rate"))]


def _pieces(method: Method) -> tuple[BarSegment, ...]:
    """Return a segment for each chosen rate, ascending; the shade is its place in the grid."""
    chosen = Counter(_chosen_rates(method))
    rated = ((s.get("setting") or {}).get("learning_rate") for s in method.get("settings") or [])
    tried = sorted({float(rate) for rate in rated if rate} | set(chosen))
    pieces, low, total = [], 0.0, chosen.total()
    for rate in sorted(chosen):
        high = low + 100 * chosen[rate] / total
        shade = round((_SHADES - 1) * tried.index(rate) / max(1, len(tried) - 1))
        pieces.append(BarSegment(f"rate-{shade}", round(low, 3), round(high, 3)))
        low = high
    return tuple(pieces)


def _counts(method: Method) -> str:
    """Return how often each rate was chosen, the recommended one first."""
    chosen = Counter(_chosen_rates(method))
    best = (method.get("setting") or {}).get("learning_rate")
    order = sorted(chosen, key=lambda rate: (rate != best, -chosen[rate], rate))
    total = chosen.total()
    return ", ".join(
        f"{format_learning_rate(rate)} in {chosen[rate]}" + (f" of {total}" if i == 0 else "")
        for i, rate in enumerate(order)
    )


def _stood_in_text(methods: list[Method]) -> str | None:
    """Count the replicates of which every setting diverged."""
    counts = {
        method_title(m): n
        for m in methods
        if (n := sum(bool(s.get("stood_in")) for s in m.get("seeds") or []))
    }
    if not counts:
        return None
    listed = ", ".join(f"{title} {n}" for title, n in counts.items())
    return (
        f"Replicates of which every setting diverged: {listed}. They count with the scores of a "
        "model that was not trained."
    )


def _replicate_table(methods: list[Method], study: dict[str, Any]) -> TableBlock:
    unit = score_unit(study)
    rows = tuple(
        TableRow(
            (
                Cell(method_title(m)),
                Cell(str(s.get("seed")), s.get("seed")),
                Cell(format_setting(s.get("setting"))),
                Cell(format_significant(s.get("validation_loss"), 4), s.get("validation_loss")),
                Cell(unit.plain(s.get("test_score")), s.get("test_score")),
                Cell(_STOOD_IN.get(str(s.get("stood_in")), s.get("stood_in") or "")),
            )
        )
        for m in methods
        for s in m.get("seeds") or []
    )
    columns = (
        Column("Method", facet=True),
        Column("Seed", True),
        Column("Chosen setting"),
        Column("Validation loss", True, "nats"),
        Column("Test score", True, unit.word or None),
        Column("Note"),
    )
    return TableBlock(
        "Every replicate", columns, rows, folded=True, sortable=True, filterable=True,
        sheet="replicates",
    )  # fmt: skip


def _head(report: dict[str, Any]) -> list[Block]:
    """Describe the output layer's learning rate and how it was found."""
    text, head = head_text(report), report.get("head") or {}
    if text is None:
        return []
    source = {
        "tuned": "It was tuned once on the output layer alone, with the rest frozen.",
        "given": "It is that of the study file.",
    }.get(str(head.get("source")), "")
    doubtful = bool(head.get("sensitive")) or head.get("source") == "method"
    checked = "sensitive" in head and not doubtful
    sentences = [f"Output layer: {text}.", source, "No verdict depends on it." if checked else ""]
    tone = "warning" if doubtful else "plain"
    blocks: list[Block] = [Text(" ".join(s for s in sentences if s), tone)]
    rows = tuple(
        TableRow(
            (
                Cell(format_learning_rate(tried.get("learning_rate")), tried.get("learning_rate")),
                Cell(format_significant(tried.get("loss"), 4) if tried.get("loss") else DASH),
            )
        )
        for tried in head.get("grid") or []
    )
    if rows:
        columns = (Column("Learning rate", True), Column("Validation loss", True, "nats"))
        blocks.append(TableBlock("Output layer alone", columns, rows, folded=True))
    return blocks
