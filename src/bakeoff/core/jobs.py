"""The functions that worker processes run, by name, and the messages between the processes."""

from __future__ import annotations

import importlib
from typing import Any

BEAT, STOP = 0, 1
"""Places in the numbers that parent and worker share: when work last went on, whether to stop."""


def resolve(function: str) -> Any:
    """Import ``module:name``."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
