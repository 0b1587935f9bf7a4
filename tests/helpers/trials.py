"""A small study's planned trials."""

from __future__ import annotations

from pathlib import Path

from bakeoff.methods import registry
from bakeoff.study.config import parse_spec

SPEC = parse_spec(
    {
        "name": "s",
        "seed": 7,
        "base": {"model": "b"},
        "data": {"train": "t.jsonl"},
        "task": {"kind": "classify"},
        "methods": {"contenders": ["ia3", "full"]},
        "budget": {"settings": 3, "seeds": 2},
    }
)


ENTRIES = [registry.load(n, Path()) for n in SPEC.method_names]
