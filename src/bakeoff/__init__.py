"""bakeoff: is LoRA best for your model, your data and your budget? Compare and see.

The public names load on first use, so that ``import bakeoff`` costs nothing and the training half
can be imported on a machine that has only torch, transformers, peft, safetensors and numpy.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
_HOME = {
    "run": "api",
    "report": "api",
    "compare": "api",
    "read_record": "api",
    "StudySpec": "study.config",
    "read_spec": "study.config",
    "parse_spec": "study.config",
    "BakeoffError": "core.errors",
    "Comparison": "integrations.notebook",
}
__all__ = ["__version__", *_HOME]  # not "open": `import *` must leave Python's own alone

# PEFT imports bitsandbytes wherever it is installed, which then asks for a faster kernel that no
# study uses: not for the user's terminal
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class _Moved(ModuleType):
    """A module under its former name, which loads the new one on first use."""

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name, f"Formerly here; now ``{home}``.")
        self._home = home

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._home), name)


delivery = sys.modules["bakeoff.delivery"] = _Moved(
    "bakeoff.delivery", "bakeoff.integrations.export_weights"
)


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name == "open":
        return importlib.import_module("bakeoff.integrations.notebook").open_comparison
    if name in _HOME:
        return getattr(importlib.import_module(f"bakeoff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bakeoff' has no attribute '{name}'")
