"""LoRA-GA: LoRA initialised by an SVD of the first gradients, to match full fine-tuning's step."""

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
    """Initialised from the base's weights and gradients (arXiv 2407.05000)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Let PEFT sum gradients over the calibration batches, then attach."""
        settings: Any = config
        if settings.target_modules == "all-linear":
            settings.target_modules = set(linear_layers(base, context.heads))

        def steps() -> None:
            for batch in context.batches(ROWS):
                context.loss(base, batch).backward()  # type: ignore[no-untyped-call]  # torch's has no types

        # PEFT counts passes with hooks on modules whose inputs need no gradient; this is intended
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        preprocess_loraga(base, settings, steps)
        # PEFT's decomposition draws random numbers: one seed, so that trials share a base
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().inject(base, settings, context)


HOOK = LoraGA
