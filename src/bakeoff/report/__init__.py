"""The report: the dict that analysis made in, one self-contained HTML page out.

Stands at the end of the way of the data, beside nothing: it reads only the report dict
(``docs/report-json.md``), so a page can be rebuilt anywhere from a ``report.json``.
"""

from __future__ import annotations

from bakeoff.report.page import assets, render, render_sections

__all__ = ["assets", "render", "render_sections"]
