"""The methods that most studies compare: what expensive tests are run over."""

from __future__ import annotations

from bakeoff.testing.trials import OPTIONS

CORE = (
    "dora", "full", "head", "ia3", "ln_tuning", "lora", "miss", "oft", "prefix_tuning", "vera",
)  # fmt: skip
CASES = [(m, task) for m in CORE for task in OPTIONS if (m, task) != ("head", "sft")]
