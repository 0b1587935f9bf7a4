"""Convergence and stability of the methods of the report made by hand."""

from __future__ import annotations

from typing import Any


def stability(name: str, prior: float, score: float, rate: float, n_seeds: int) -> dict[str, Any]:
    wide, diverged = name in ("lora", "dora", "ia3"), int(name == "full")
    return {
        "divergence": {"share": diverged / 6, "diverged": diverged, "trials": 6},
        "plateau": {
            "decades": 1.0 if wide else 0.0,
            "low": prior / 10 if wide else rate,
            "high": rate,
            "rates": 3,
            "open": wide or name == "vera",
            "by": "loss" if name == "oft" else "score",
            "step": 75 if name == "oft" else None,
        },
        "seed_sd": {"estimate": 0.004, "low": 0.0021, "high": 0.0251, "n_seeds": n_seeds},
        "spikes": {"count": 2 * diverged, "changes": 30, "trials": 6},
        "steps_to_control_loss": {"lora": 225, "oft": 180, "full": 225}.get(name),
        "validation_area": {"estimate": 1.4 + 2 * (0.87 - score), "n_seeds": n_seeds},
    }
