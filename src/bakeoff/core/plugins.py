"""Find plug-ins by file name: a file in a plug-in folder is its registration.

Used for tasks, metrics and executors; listing names imports nothing, so it is instant.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from bakeoff.core.errors import unknown


def names(package: str) -> tuple[str, ...]:
    """Return the plug-in names in ``package`` (``tasks``, ``metrics``, ``executors``)."""
    parent = importlib.import_module(f"bakeoff.{package}")
    found = (m.name for m in pkgutil.iter_modules(parent.__path__))
    return tuple(sorted(n for n in found if not n.startswith("_")))


def find(package: str, name: str) -> ModuleType:
    """Import one plug-in's module.

    Raises:
        UsageError: ``unknown-<kind>``, with the near match.
    """
    known = names(package)
    if name not in known:
        kind = package.rstrip("s")
        raise unknown(f"unknown-{kind}", kind, name, known)
    return importlib.import_module(f"bakeoff.{package}.{name}")
