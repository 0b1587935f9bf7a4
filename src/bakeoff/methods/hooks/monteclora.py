"""MonteCLoRA: PEFT samples the weights, the variational term is left to the training loop."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from bakeoff.methods.hook import AttachContext, PenaltyHook


class MonteCLoRA(PenaltyHook):
    """Adds PEFT's variational term, and lets each pass draw for itself.

    PEFT draws samples ahead, for so many passes: whoever takes the next one takes it from the
    trials that share the base, and a trial that goes on from a rung would begin again. A buffer of
    one, empty from the start, is filled in each pass from the stream that the trial and the step
    have seeded.
    """

    term = "_get_monteclora_loss"

    def inject(self, base: nn.Module, config: peft.PeftConfig, ground: AttachContext) -> nn.Module:
        """Attach with empty buffers."""
        model = super().inject(base, config, ground)
        for module in model.modules():
            sampler: Any = getattr(module, "sampler", None)
            if hasattr(sampler, "buffer_size"):
                sampler.buffer_size = sampler.index = 1
        return model


HOOK = MonteCLoRA
