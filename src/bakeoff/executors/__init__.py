"""Executors: carry work to where it runs. One file each, with an ``EXECUTOR`` class.

The contract: ``map(function, payloads)`` yields one ``Outcome`` for each payload, in any order, as
soon as it is there; a payload is taken only when its work can begin. ``function`` is a top-level
function named ``module:name``, from JSON values to JSON values. An executor never raises for what
happens inside the work: a dead worker is an ``Outcome`` with an error. It never opens the database.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Outcome:
    """What became of payload number ``index``: a value, or the reason why there is none."""

    index: int
    value: dict[str, Any] | None
    error: str | None


class Executor(Protocol):
    """Runs a function over payloads."""

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield an outcome for each payload as it ends."""
        ...


def resolve(function: str) -> Any:
    """Import ``module:name``."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
