"""Riemannian preconditioned LoRA: each factor's gradient is scaled by the other factor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bakeoff.methods.hook import Hook, invert

DAMPING = 1e-2
"""Default of PEFT's ``create_riemannian_optimizer``."""


class Riemannian(Hook):
    """LoRA whose A and B are preconditioned by each other (arXiv 2402.02347)."""

    def precondition(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return ``(B^T B + dI)^-1 g_A`` and ``g_B (A A^T + dI)^-1``."""
        new = {}
        for name, g_a in gradients.items():
            if ".lora_A." not in name:
                continue
            twin = name.replace(".lora_A.", ".lora_B.")
            a, b = values[name], values[twin]
            damping = DAMPING * torch.eye(len(a), device=a.device)
            new[name] = invert(b.mT @ b + damping) @ g_a
            new[twin] = gradients[twin] @ invert(a @ a.mT + damping)
        return new


HOOK = Riemannian
