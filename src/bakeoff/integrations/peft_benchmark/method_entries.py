"""Describe an imported experiment as a method: what the catalog knows of its PEFT type.

Read by ``importing``. Nothing of it is ever trained, so a type that this bakeoff does not know is
no error.
"""

from __future__ import annotations

from typing import Any

from bakeoff.core.trial import MethodEntry
from bakeoff.methods import user_defined


def method_entry(name: str, config: dict[str, Any] | None, learning_rate: float) -> MethodEntry:
    """Return the entry of an experiment; ``config`` None is full fine-tuning."""
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
