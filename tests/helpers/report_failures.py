"""The failures of the report fixture: diverged settings, and a method that does not fit."""

from __future__ import annotations

from typing import Any


def failures() -> list[dict[str, Any]]:
    """Return every run that did not end well."""
    rows: list[dict[str, Any]] = [
        {
            "method": "miss",
            "trial_id": f"miss{i}aa",
            "phase": "search",
            "seed": 0,
            "setting": {"learning_rate": 10.0 ** (i - 3)},
            "status": "diverged",
            "reason": f"the loss was not finite at step {31 - i}",
        }
        for i in range(3)
    ]
    rows.append(
        {
            "method": "full",
            "trial_id": "full9aa",
            "phase": "search",
            "seed": 0,
            "setting": {"learning_rate": 1e-3},
            "status": "diverged",
            "reason": "the loss was not finite at step 12",
        }
    )
    rows.append(
        {
            "method": "prefix_tuning",
            "trial_id": None,
            "phase": None,
            "seed": None,
            "setting": {},
            "status": "incompatible",
            "reason": "BertModel takes no past_key_values in this version of transformers\n"
            + '  File "peft/peft_model.py", line 812, in forward\n' * 8,
        }
    )
    return rows
