"""Failures: every run that failed or diverged, with its reason."""

from __future__ import annotations

from typing import Any

from bakeoff.core.format import DASH, format_setting, format_status, plural
from bakeoff.report.blocks import Block, Cell, Column, SectionView, TableBlock, TableRow, Text
from bakeoff.report.texts import method_title, retry_hint

ORDER = 90
TITLE = "Failures"

_FILTER_FROM = 8
"""Number of rows above which the table is filterable."""

_COLUMNS = (
    Column("Method"),
    Column("Status", facet=True),
    Column("Phase"),
    Column("Setting"),
    Column("Seed", True),
    Column("Trial"),
    Column("Reason"),
)
_RETRIED_AT = Column("Retried at")


def build(report: dict[str, Any]) -> SectionView:
    """Show a row for every failure and every retried run."""
    failures, retried = report.get("failures") or [], report.get("retried") or []
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    rows = tuple(_row(f, titles) for f in failures)
    blocks: list[Block] = [Text("No run failed.", "muted")]
    if rows:
        caption, many = plural(len(rows), "failure"), len(rows) > _FILTER_FROM
        blocks = [TableBlock(caption, _COLUMNS, rows, filterable=many, sheet="failures")]
        if (hint := retry_hint(report)) is not None:
            blocks.append(Text(hint, "muted"))
    if retried:
        again = tuple(_row(r, titles, str(r["at"])) for r in retried)
        caption, columns = "Retried runs: their earlier results", (*_COLUMNS, _RETRIED_AT)
        blocks.append(TableBlock(caption, columns, again, sheet="retried"))
    return SectionView(tuple(blocks))


def _row(failure: dict[str, Any], titles: dict[Any, str], *when: str) -> TableRow:
    seed = failure.get("seed")
    name = failure.get("method")
    return TableRow(
        (
            Cell("Base model (not fine-tuned)" if name is None else titles.get(name, str(name))),
            Cell(format_status(failure.get("status")), tone="none"),
            Cell(str(failure.get("phase") or DASH)),
            Cell(format_setting(failure.get("setting"))),
            Cell(DASH if seed is None else str(seed)),
            Cell(str(failure.get("trial_id") or DASH)),
            Cell(str(failure.get("reason") or "no reason was recorded"), long=True),
            *(Cell(at) for at in when),
        )
    )
