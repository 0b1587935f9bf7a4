"""EVA: LoRA whose A starts at the directions in which the layers' inputs vary most."""

from __future__ import annotations

import math
from typing import Any

import peft
import torch
from peft.tuners.lora.eva import (
    initialize_lora_eva_weights,
    prepare_layer_inputs_fn_language_modeling,
)
from torch import nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible

ROWS = 32
"""Examples in a batch of the incremental SVD, at least."""


class Eva(Hook):
    """Starts from an SVD of activations and shares the ranks out by it (arXiv 2410.07170)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, ground: AttachContext) -> nn.Module:
        """Attach LoRA, then let PEFT read the calibration batches."""
        model = super().inject(base, config, ground)
        model.eval()
        of: Any = config
        # PEFT goes round until every layer has seen as many vectors in a batch as it looks for
        needed = math.ceil(of.r * of.eva_config.rho)
        rows = max(ROWS, needed)
        seen = [dict(b.inputs) for b in ground.batches(rows) if b.rows >= needed]
        if not seen:
            raise Incompatible(f"it starts from at least {needed} training examples")
        initialize_lora_eva_weights(
            model,
            seen,
            forward_fn=_forward,
            prepare_layer_inputs_fn=_seen_by_layer,
            show_progress_bar=False,
        )
        return model


def _forward(model: nn.Module, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


def _seen_by_layer(given: Any, real: torch.Tensor, name: str) -> torch.Tensor:
    """Return the real tokens' inputs; a pooler is given no tokens, but one vector a row."""
    x: torch.Tensor = given if isinstance(given, torch.Tensor) else given[0]
    if x.dim() == 2:
        return x.contiguous()
    found: torch.Tensor = prepare_layer_inputs_fn_language_modeling(x, real, name)
    return found


HOOK = Eva
