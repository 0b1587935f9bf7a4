"""The pages' own files: markup that holds no data but a title and ids, scripts, styles.

The report's style and scripts come from ``bakeoff.report``: both carriers show the same sections.
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
    """Return a page."""
    return _environment().get_template(template).render(values)


def static(name: str) -> tuple[str, str]:
    """Return the media type and the text of one of our own files.

    Raises:
        UsageError: ``no-file``; a name is looked up in a list, never on the disk.
    """
    found = _files().get(name)
    if found is None:
        raise UsageError("no-file", "There is no such file.", "the list of studies at /.")
    return KINDS[Path(name).suffix], found


@cache
def _files() -> dict[str, str]:
    own = {name: (_HERE / "static" / name).read_text(encoding="utf-8") for name in OWN}
    return {**assets(), **own}


@cache
def _environment() -> Environment:
    return make_environment(_HERE / "templates")
