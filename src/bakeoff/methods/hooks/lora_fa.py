"""LoRA-FA: A is frozen, and B's gradient is preconditioned for the update of the product B A."""

from __future__ import annotations

from collections.abc import Mapping

import peft
import torch
from torch import Tensor, nn

from bakeoff.methods.hook import AttachContext, Hook, invert

DAMPING = 1e-8
"""Added to A A^T before the inversion, as in PEFT's ``LoraFAOptimizer``."""


class LoraFA(Hook):
    """LoRA with A frozen (arXiv 2308.03303), preconditioned as PEFT's ``LoraFAOptimizer`` does."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach LoRA and freeze every A."""
        model = super().inject(base, config, context)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
        self.scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        return model

    def precondition(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return ``(1/scale^2) g_B (A A^T)^-1``: the step of B closest to full fine-tuning's."""
        new = {}
        for name, gradient in gradients.items():
            if ".lora_B." in name:
                a = values[name.replace(".lora_B.", ".lora_A.")].to(gradient.dtype)
                damped = a @ a.mT + DAMPING * torch.eye(len(a), device=a.device)
                new[name] = gradient @ invert(damped) / self.scale**2
        return new


HOOK = LoraFA
