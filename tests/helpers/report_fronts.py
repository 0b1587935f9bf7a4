"""The fronts of the report made by hand: probabilities by method, and the front over all axes."""

from __future__ import annotations

from typing import Any

_NAMES = ("lora", "oft", "dora", "full", "ia3", "vera", "ln_tuning", "head")
CHANCES: dict[str, dict[str, float]] = {
    front: dict(zip(_NAMES, chances, strict=True))
    for front, chances in {
        "memory": (0.93, 0.71, 0.34, 0.12, 1.0, 0.04, 1.0, 0.002),
        "speed": (0.88, 0.81, 0.22, 0.66, 1.0, 0.06, 1.0, 1.0),
        "joint": (0.97, 0.84, 0.35, 0.66, 1.0, 1.0, 1.0, 1.0),
    }.items()
}


def front() -> dict[str, Any]:
    return {
        "axes": ["quality", "memory", "speed", "size"],
        "not_measured": ["forgetting"],
        "draws": 10_000,
        "cost_tie": 0.05,
        "front": ["head", "ln_tuning", "vera", "ia3", "lora", "oft"],
        "probabilities": {m: p for m, p in CHANCES["joint"].items() if m != "full"},
        "left_out": {"full": ["size"]},
    }
