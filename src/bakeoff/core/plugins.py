"""Find plug-ins by file name: a module in a plug-in package is registered by being there.

Listing names does not import plug-ins. Modules that start with an underscore are not plug-ins.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from bakeoff.core.errors import unknown_name


def list_plugins(package: str) -> tuple[str, ...]:
    """Return the plug-in names in a package below ``bakeoff``, such as ``metrics.builtin``."""
    parent = importlib.import_module(f"bakeoff.{package}")
    names = (module.name for module in pkgutil.iter_modules(parent.__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def load_plugin(package: str, name: str, kind: str) -> ModuleType:
    """Import the module of a plug-in; ``kind`` is the word for it in errors, such as ``metric``.

    Raises:
        UsageError: ``unknown-<kind>``, with the closest match.
    """
    known = list_plugins(package)
    if name not in known:
        raise unknown_name(f"unknown-{kind}", kind, name, known)
    return importlib.import_module(f"bakeoff.{package}.{name}")
