"""MonteCLoRA: PEFT samples the weights; the variational term is added to the loss."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from bakeoff.methods.hook import AttachContext, PenaltyHook


class MonteCLoRA(PenaltyHook):
    """Adds PEFT's variational term, and draws new samples in each forward pass.

    PEFT draws samples for many passes ahead into a buffer. Trials that share the base would take
    each other's samples, and a resumed trial would draw others. An empty buffer of size one is
    filled in each pass, from the random stream that the trial and the step have seeded.
    """

    term = "_get_monteclora_loss"

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach with empty buffers."""
        model = super().inject(base, config, context)
        for module in model.modules():
            sampler: Any = getattr(module, "sampler", None)
            if hasattr(sampler, "buffer_size"):
                sampler.buffer_size = sampler.index = 1
        return model


HOOK = MonteCLoRA
