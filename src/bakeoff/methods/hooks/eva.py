"""EVA: LoRA whose A is initialised with the principal directions of the layers' inputs."""

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
"""Minimum number of examples in a batch of the incremental SVD."""


class Eva(Hook):
    """Initialised by an SVD of activations, which also distributes the ranks (arXiv 2410.07170)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach LoRA, then let PEFT run the calibration batches."""
        model = super().inject(base, config, context)
        model.eval()
        settings: Any = config
        # PEFT repeats until every layer has seen as many vectors in a batch as it needs directions
        needed = math.ceil(settings.r * settings.eva_config.rho)
        rows = max(ROWS, needed)
        calibration = [dict(b.inputs) for b in context.batches(rows) if b.rows >= needed]
        if not calibration:
            raise Incompatible(f"it starts from at least {needed} training examples")
        initialize_lora_eva_weights(
            model,
            calibration,
            forward_fn=_forward,
            prepare_layer_inputs_fn=_layer_inputs,
            show_progress_bar=False,
        )
        return model


def _forward(model: nn.Module, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


def _layer_inputs(inputs: Any, mask: torch.Tensor, name: str) -> torch.Tensor:
    """Return the inputs of tokens without padding; a pooler gets one vector per row."""
    x: torch.Tensor = inputs if isinstance(inputs, torch.Tensor) else inputs[0]
    if x.dim() == 2:
        return x.contiguous()
    vectors: torch.Tensor = prepare_layer_inputs_fn_language_modeling(x, mask, name)
    return vectors


HOOK = Eva
