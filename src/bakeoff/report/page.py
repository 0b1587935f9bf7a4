"""Render the report as one HTML page.

``render`` is a pure function of the report dict: the same dict gives the same bytes. The page
contains its scripts and styles, fetches nothing and works offline.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bakeoff.report.blocks import Chart, SectionView
from bakeoff.report.csv_tables import LONG, tables
from bakeoff.report.sanitize import clean, content_policy, inert_json
from bakeoff.report.sections import load_sections

_HERE = Path(__file__).parent
INLINE = ("verdict", "forest", "table")
STATIC = ("text", "tiles", "forest", "table")
"""Kinds of block that need no script."""


@dataclass(frozen=True)
class _PageSection:
    key: str
    title: str
    view: SectionView


def render(report: dict[str, Any]) -> str:
    """Return one self-contained HTML page that shows the report.

    Args:
        report: the report dict, schema 1 (``docs/report-json.md``); missing numbers are None.
    """
    report = clean(report)
    sections = _page_sections(report)
    charts = [_chart_json(c) for s in sections for c in s.view.charts]
    style, plotly, script = _asset("templates/style.css"), _plotly(), _asset("templates/report.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            study=report["study"],
            sections=sections,
            **_csv_sheets(report),
            charts=inert_json(charts),
            # Plotly opens an empty style element and fills it through the CSSOM, which no policy
            # restricts: allowing the hash of nothing is enough, 'unsafe-inline' is not needed.
            # It writes style *attributes* only for markup in labels; report.js escapes all labels.
            policy=content_policy([plotly, script], [style, ""]),
            style=style,
            plotly=plotly,
            script=script,
        )
    )


def render_sections(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each section as ``{"key", "title", "html", "charts"}``, in the page's order.

    ``html`` is its markup in the page, ``charts`` the data that ``report.js`` draws in it.
    """
    template = _environment().get_template("section.html")
    report = clean(report)
    sheets = _csv_sheets(report)
    return [
        {
            "key": section.key,
            "title": section.title,
            "html": template.render(section=section, **sheets),
            "charts": [_chart_json(c) for c in section.view.charts],
        }
        for section in _page_sections(report)
    ]


def _chart_json(chart: Chart) -> dict[str, Any]:
    """Return a chart for ``report.js``, rounded to seven digits, more than a screen can show."""
    data: dict[str, Any] = _round_floats(dataclasses.asdict(chart))
    return data


def _round_floats(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: _round_floats(v) for k, v in value.items()}
    return [_round_floats(v) for v in value] if isinstance(value, list | tuple) else value


def _csv_sheets(report: dict[str, Any]) -> dict[str, Any]:
    """Return the template values for CSV downloads: the texts and the prefix of file names."""
    sheets = {name: text for name, text in tables(report).items() if name not in LONG}
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", str(report["study"].get("name") or ""))
    return {"sheets": sheets, "slug": slug.strip("-.")[:40] or "study"}


def render_inline(report: dict[str, Any]) -> str:
    """Return the verdict, the forest plot and the table as HTML for another page.

    It contains no script, and its styles are attributes: nothing around it changes.
    """
    sections = [s for s in _page_sections(clean(report)) if s.key in INLINE]
    return _environment().get_template("inline.html").render(sections=sections, kinds=STATIC)


def _page_sections(report: dict[str, Any]) -> list[_PageSection]:
    """Return the non-empty sections in the page's order."""
    built = (_PageSection(s.key, s.title, s.build(report)) for s in load_sections())
    return [s for s in built if s.view.blocks]


@cache
def _environment() -> Environment:
    return make_environment(_HERE / "templates")


def make_environment(templates: Path) -> Environment:
    """Return a Jinja environment that escapes all text and rejects undefined names."""
    return Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    # Universal newlines: a checkout with \r\n must not change the hash that a browser computes.
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    return _asset("vendor/plotly-basic.min.js")


def assets() -> dict[str, str]:
    """Return the page's style and scripts by file name."""
    return {
        "style.css": _asset("templates/style.css"),
        "plotly.js": _plotly(),
        "report.js": _asset("templates/report.js"),
    }
