"""LoRA-GA: LoRA whose first step is full fine-tuning's, by an SVD of the first gradients."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

from bakeoff.methods.arguments import linear_layers
from bakeoff.methods.hook import AttachContext
from bakeoff.methods.residual_lora import ResidualLora

ROWS = 8


class LoraGA(ResidualLora):
    """Starts inside the base's weights, by its gradients (arXiv 2407.05000)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, ground: AttachContext) -> nn.Module:
        """Let PEFT sum gradients over the calibration batches, then attach."""
        of: Any = config
        if of.target_modules == "all-linear":
            of.target_modules = set(linear_layers(base, ground.heads))

        def steps() -> None:
            for batch in ground.batches(ROWS):
                ground.loss(base, batch).backward()  # type: ignore[no-untyped-call]

        # PEFT counts passes by a hook on modules whose inputs need no gradient, as it means to
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        preprocess_loraga(base, of, steps)
        # PEFT's decomposition draws: the same draws for every seed, so that trials share a base
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().inject(base, of, ground)


HOOK = LoraGA
