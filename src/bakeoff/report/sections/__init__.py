"""The sections of the report, one module each; to add a section, add a file.

A section module has ``ORDER`` (its position on the page), ``TITLE`` and ``build(report)``, which
returns a ``SectionView``.
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
    """A section of the page; ``key`` is its module's name and its anchor."""

    key: str
    order: int
    title: str
    build: Callable[[dict[str, Any]], SectionView]


def load_sections() -> list[Section]:
    """Return all sections in the order of the page."""
    sections = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        sections.append(Section(info.name, module.ORDER, module.TITLE, module.build))
    return sorted(sections, key=lambda s: (s.order, s.key))
