"""Render a report as one self-contained HTML page, as CSV files and as Markdown.

The only input is the report dict (``docs/report-json.md``), so everything can be rendered anywhere
from a ``report.json``.
"""

from __future__ import annotations

from bakeoff.report.csv_tables import tables
from bakeoff.report.markdown import markdown
from bakeoff.report.page import assets, render, render_inline, render_sections

__all__ = ["assets", "render_inline", "markdown", "render", "render_sections", "tables"]
