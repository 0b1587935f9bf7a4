"""The race of the report made by hand: three decisions at one rung."""

from __future__ import annotations

from typing import Any


def race() -> dict[str, Any]:
    rows = [("lora", 1e-3, 1, True), ("vera", 3e-1, 1, True), ("vera", 3e-3, 3, False)]
    decisions = [
        {
            "step": 22,
            "trial_id": f"{method}{place}a00",
            "method": method,
            "goes_on": goes_on,
            "reason": f"setting {place} of 3 by validation loss" + ("" if goes_on else "; 2 go on"),
            "numbers": {"mean_loss": 2.1 + place, "place": place, "of": 3},
            "learning_rate": rate,
            "mean_loss": 2.1 + place,
            "whole_method": False,
        }
        for method, rate, place, goes_on in rows
    ]
    return {
        "rungs": [22, 67],
        "decisions": decisions,
        "methods_stopped": [],
        "steps_trained": 8_910,
        "steps_in_full": 11_925,
    }
