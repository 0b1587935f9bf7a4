"""Method entries for imported experiments, from the catalog's entry of their PEFT type.

Imported methods are never trained, so an unknown PEFT type is no error.
"""

from __future__ import annotations

from typing import Any

from bakeoff.core.trial import MethodEntry
from bakeoff.methods import user_defined


def method_entry(name: str, config: dict[str, Any] | None, learning_rate: float) -> MethodEntry:
    """Return the method entry of an experiment; a ``config`` of None is full fine-tuning."""
    like = user_defined.find_catalog_method(config) if config is not None else None
    return MethodEntry(
        name=name,
        title=name,
        family=like.family if like else "full" if config is None else "other",
        mechanism=like.mechanism if like else "",
        paper=like.paper if like else None,
        peft=like.peft if like else None,
        hook="full" if config is None else None,
        config=user_defined.method_arguments(config or {}),
        learning_rate=learning_rate,
        learning_rate_why="the experiment's own",
    )
