"""Warnings: all of them, those first that change the meaning of the verdict."""

from __future__ import annotations

from typing import Any

from bakeoff.core.format import DASH, plural
from bakeoff.core.warning_codes import (
    DATA,
    GROUPS,
    OTHER,
    SETTINGS,
    VERDICT,
    code_of,
    group_of,
    sort_warnings,
)
from bakeoff.report.blocks import Cell, Column, SectionView, TableBlock, TableRow

ORDER = 85
TITLE = "Warnings"

_WORDS = {
    VERDICT: "the verdict",
    SETTINGS: "the choice of settings",
    DATA: "data and base",
    OTHER: "other",
}
_COLUMNS = (Column("About", facet=True), Column("Warning"), Column("Code"))


def build(report: dict[str, Any]) -> SectionView:
    """Show a row for every warning."""
    warnings = sort_warnings(report.get("warnings") or [])
    if not warnings:
        return SectionView()
    places = {group: float(i) for i, group in enumerate(GROUPS)}
    rows = tuple(_row(warning, places) for warning in warnings)
    return SectionView((TableBlock(plural(len(rows), "warning"), _COLUMNS, rows),))


def _row(warning: str, places: dict[str, float]) -> TableRow:
    group, code = group_of(warning), code_of(warning)
    text = warning if code is None else warning.rstrip().removesuffix(f"[{code}]").rstrip()
    return TableRow((Cell(_WORDS[group], places[group]), Cell(text, long=True), Cell(code or DASH)))
