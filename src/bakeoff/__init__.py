"""bakeoff compares LoRA with other fine-tuning methods on your model, data and budget.

Public names load on first use: ``import bakeoff`` is cheap, and a worker needs only torch,
transformers, peft, safetensors and numpy.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
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
    "StudyResult": "integrations.notebook",
    "Comparison": "integrations.notebook",  # the former name of StudyResult
}
__all__ = ["__version__", *_HOME]  # not "open": `import *` must not replace Python's own

# PEFT imports bitsandbytes if it is installed, which then recommends a faster kernel on the
# terminal; no study uses it
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class _MovedModule(ModuleType):
    """A module under its former name, which loads the new module on first use.

    ``renamed`` maps former names in it to the new ones.
    """

    def __init__(self, name: str, target: str, renamed: Mapping[str, str]) -> None:
        super().__init__(name, f"The former name of ``{target}``.")
        self._target, self._renamed = target, dict(renamed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._target), self._renamed.get(name, name))


delivery = sys.modules["bakeoff.delivery"] = _MovedModule(
    "bakeoff.delivery",
    "bakeoff.integrations.export_weights",
    {"deliver": "export_weights", "Delivered": "ExportedWeights"},
)


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name == "open":
        return importlib.import_module("bakeoff.integrations.notebook").open_result
    if name in _HOME:
        return getattr(importlib.import_module(f"bakeoff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bakeoff' has no attribute '{name}'")
