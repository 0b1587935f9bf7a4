"""MonteCLoRA: PEFT samples the weights; the variational term is added to the loss."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from bakeoff.methods.hook import AttachContext, PenaltyHook


class MonteCLoRA(PenaltyHook):
    """Adds PEFT's variational term to the loss.

    PEFT draws samples for 150 passes ahead, in every layer when it is created: most of the time of
    the set-up. Here samples are drawn pass by pass, so the buffer has room for one.
    """

    term = "_get_monteclora_loss"

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach with buffers of one sample."""
        settings: Any = config
        settings.monteclora_config.buffer_size = 1
        return super().inject(base, settings, context)


HOOK = MonteCLoRA
