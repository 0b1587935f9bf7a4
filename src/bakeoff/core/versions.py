"""Versions of installed packages. Standard library only; no package is imported for it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import bakeoff

PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")
"""Packages that results depend on: the same versions are required on every machine of a study."""


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None for a missing one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of the installed ``packages``, of bakeoff and of Python, by name."""
    versions = {p: v for p in packages if (v := installed_version(p)) is not None}
    return {**versions, "bakeoff": bakeoff.__version__, "python": platform.python_version()}
