"""Find plug-ins by file name: a file in a plug-in package is its registration.

Listing names imports no plug-in. Names that start with an underscore are no plug-ins.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from bakeoff.core.errors import unknown_name


def list_plugins(package: str) -> tuple[str, ...]:
    """Return the plug-in names in a package below ``bakeoff``, such as ``metrics.builtin``."""
    parent = importlib.import_module(f"bakeoff.{package}")
    found = (m.name for m in pkgutil.iter_modules(parent.__path__))
    return tuple(sorted(n for n in found if not n.startswith("_")))


def load_plugin(package: str, name: str, kind: str) -> ModuleType:
    """Import the module of one plug-in; ``kind`` is its word in an error (``metric``).

    Raises:
        UsageError: ``unknown-<kind>``, with the nearest name.
    """
    known = list_plugins(package)
    if name not in known:
        raise unknown_name(f"unknown-{kind}", kind, name, known)
    return importlib.import_module(f"bakeoff.{package}.{name}")
