"""The pages of the live view and their static files.

Pages contain no data except a title and ids. The style and scripts of the sections are the
report's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment

from bakeoff.core.errors import UsageError
from bakeoff.report import assets
from bakeoff.report.page import make_environment

_HERE = Path(__file__).parent
KINDS = {".js": "text/javascript", ".css": "text/css"}
OWN = ("view.css", "common.js", "list.js", "study.js", "items.js", "compare.js")


def page(template: str, **values: str) -> str:
    """Render a page template."""
    return _environment().get_template(template).render(values)


def static(name: str) -> tuple[str, str]:
    """Return the media type and the text of a static file.

    Raises:
        UsageError: ``no-file``; names are looked up in a fixed list, never on disk.
    """
    text = _files().get(name)
    if text is None:
        raise UsageError("no-file", "There is no such file.", "the list of studies at /.")
    return KINDS[Path(name).suffix], text


@cache
def _files() -> dict[str, str]:
    static_files = {name: (_HERE / "static" / name).read_text(encoding="utf-8") for name in OWN}
    return {**assets(), **static_files}


@cache
def _environment() -> Environment:
    return make_environment(_HERE / "templates")
