"""Full fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bakeoff.engine.quantization import is_quantized
from bakeoff.methods.hook import AttachContext, Hook, Incompatible, SaveContext


class Full(Hook):
    """Trains every weight of the base; saved as a whole model."""

    saved_as = "model"

    def attach(self, base: nn.Module, context: AttachContext) -> nn.Module:
        """Let every parameter require gradients.

        Raises:
            Incompatible: the base is quantised.
        """
        if is_quantized(base):
            raise Incompatible("it trains the weights of the base, which are quantised")
        base.requires_grad_(True)
        return base

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the whole model in safetensors."""
        model.save_pretrained(str(folder))


HOOK = Full
