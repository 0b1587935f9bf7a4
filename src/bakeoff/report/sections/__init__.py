"""The report's sections: every file of this folder is one, found by listing the folder.

A section module has ``ORDER`` (its place on the page), ``TITLE`` and ``build(report)``, which
computes and returns a ``SectionView``. Adding a section is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bakeoff.report.blocks import SectionView


@dataclass(frozen=True)
class Section:
    """A section as its module declares it; ``key`` is the module's name and the page's anchor."""

    key: str
    order: int
    title: str
    build: Callable[[dict[str, Any]], SectionView]


def load_sections() -> list[Section]:
    """Return all sections in the order of the page."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found.append(Section(info.name, module.ORDER, module.TITLE, module.build))
    return sorted(found, key=lambda s: (s.order, s.key))
