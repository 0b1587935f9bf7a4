"""The report: the dict that analysis made in, one self-contained HTML page out.

Stands at the end of the way of the data, beside nothing: it reads only the report dict
(``docs/report-json.md``), so a page can be rebuilt anywhere from a ``report.json``. The same dict
is also given as CSV, a sheet a figure, and as Markdown.
"""

from __future__ import annotations

from bakeoff.report.csv_tables import tables
from bakeoff.report.markdown import markdown
from bakeoff.report.page import assets, render, render_inline, render_sections

__all__ = ["assets", "inline", "markdown", "render", "render_sections", "tables"]
