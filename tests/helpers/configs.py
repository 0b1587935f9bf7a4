"""A study configuration that tests change."""

from __future__ import annotations

from typing import Any


def values(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "s",
        "base": {"model": "m/x"},
        "data": {"train": "t.jsonl"},
        "task": {"kind": "classify"},
        "methods": {"contenders": ["ia3"]},
    }
    return base | changes
