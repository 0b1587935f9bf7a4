"""Wins and losses by item of the report fixture, made by hand."""

from __future__ import annotations

from typing import Any

_COUNTS = {
    "oft": (31, 24), "dora": (18, 18), "full": (27, 29), "ia3": (14, 33), "vera": (12, 47),
    "ln_tuning": (9, 57), "head": (5, 214),
}  # fmt: skip
_ASKED = (
    ("turn the lights in the kitchen down to a third", "HassLightSet"),
    ("is the back door locked", "HassGetState"),
    ("what will the weather be like tomorrow morning, and should I take an umbrella with me when "
     "I walk the dog before work? […] I leave at seven.", "HassGetWeather"),
    ("start the vacuum\nin the hall\nand then in the bedroom", "HassVacuumStart"),
)  # fmt: skip
N_ITEMS = 620


def items() -> dict[str, Any]:
    """Return ``items`` of the report."""
    return {
        "n_items": N_ITEMS,
        "examples": True,
        "note": None,
        "methods": [_method(name, *counts) for name, counts in _COUNTS.items()],
        "asked": [
            {"item": 17 * i + 3, "prompt": prompt, "reference": reference}
            for i, (prompt, reference) in enumerate(_ASKED)
        ],
    }


def _method(name: str, better: int, worse: int) -> dict[str, Any]:
    pairs = 3 * N_ITEMS
    up, down = int(2.5 * better), int(2.5 * worse)
    right = 1600 - down
    return {
        "method": name,
        "n_seeds": 3,
        "better": better,
        "same": N_ITEMS - better - worse,
        "worse": worse,
        "outcomes": {
            "pairs": pairs,
            "both_right": right,
            "only_control": down,
            "only_contender": up,
            "both_wrong": pairs - right - up - down,
        },
        "wins": [_example(i, 1.0 - i / 3, "HassTurnOff") for i in (0, 1)],
        "losses": [_example(i, -1.0, _ASKED[i][1]) for i in (2, 3)],
    }


def _example(i: int, gain: float, control: str) -> dict[str, Any]:
    right = _ASKED[i][1]
    return {
        "item": 17 * i + 3,
        "seed": 1,
        "gain": gain,
        "control_score": 0.0 if gain > 0 else 1.0,
        "contender_score": gain if gain > 0 else 0.0,
        "control": control,
        "contender": right if gain > 0 else "HassTurnOn",
    }
