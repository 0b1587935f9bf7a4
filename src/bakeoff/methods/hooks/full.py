"""Full fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bakeoff.methods.hook import Finished, Ground, Hook


class Full(Hook):
    """Every weight of the base is trained; saved as a whole model."""

    saved_as = "model"

    def attach(self, base: nn.Module, ground: Ground) -> nn.Module:
        """Let every parameter require gradients."""
        base.requires_grad_(True)
        return base

    def save(self, model: Any, folder: Path, trial: Finished) -> None:
        """Write the whole model in safetensors."""
        model.save_pretrained(str(folder))


HOOK = Full
