"""EVA: LoRA whose A starts at the directions in which the layers' inputs vary most."""

from __future__ import annotations

from typing import Any

import peft
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import nn

from bakeoff.methods.hook import Ground, Hook

ROWS = 8
"""Examples in a batch of the incremental SVD."""


class Eva(Hook):
    """Starts from an SVD of activations and shares the ranks out by it (arXiv 2410.07170)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, ground: Ground) -> nn.Module:
        """Attach LoRA, then let PEFT read the calibration batches."""
        model = super().inject(base, config, ground)
        model.eval()
        seen = [dict(batch.inputs) for batch in ground.batches(ROWS)]
        initialize_lora_eva_weights(model, seen, forward_fn=_forward, show_progress_bar=False)
        return model


def _forward(model: nn.Module, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


HOOK = Eva
