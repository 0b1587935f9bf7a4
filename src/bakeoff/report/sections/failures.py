"""Section 9, failures: every run that did not end well, with its reason. Nothing is dropped."""

from __future__ import annotations

from typing import Any

from bakeoff.report import words
from bakeoff.report.blocks import Cell, Column, Row, SectionView, Table, Text

ORDER = 90
TITLE = "Failures"

_COLUMNS = (
    Column("Method"),
    Column("Status"),
    Column("Phase"),
    Column("Setting"),
    Column("Seed", True),
    Column("Trial"),
    Column("Reason"),
)


def build(report: dict[str, Any]) -> SectionView:
    """Show a row for every failure, or say that there was none."""
    failures = report.get("failures") or []
    if not failures:
        return SectionView((Text("Every run ended well.", "muted"),))
    titles = {m.get("method"): words.title(m) for m in report.get("methods") or []}
    rows = tuple(_row(f, titles) for f in failures)
    return SectionView((Table(words.plural(len(rows), "failure"), _COLUMNS, rows),))


def _row(failure: dict[str, Any], titles: dict[Any, str]) -> Row:
    seed = failure.get("seed")
    name = failure.get("method")
    return Row(
        (
            Cell(titles.get(name, str(name))),
            Cell(words.status(failure.get("status")), tone="none"),
            Cell(str(failure.get("phase") or words.DASH)),
            Cell(words.setting(failure.get("setting"))),
            Cell(words.DASH if seed is None else str(seed)),
            Cell(str(failure.get("trial_id") or words.DASH)),
            Cell(str(failure.get("reason") or "no reason was recorded"), long=True),
        )
    )
