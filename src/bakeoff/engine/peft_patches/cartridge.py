"""Cartridge: frozen and trained tokens are concatenated along dimension -2.

``peft/tuners/cartridge/model.py:82`` (``CartridgeEncoder.weight``) concatenates ``[n, width]``
tensors along dimension 0. ``PeftModel.get_prompt`` asks for the encoder's device outside vmap, when
the tensors are those of all lanes (``[K, n, width]``). Fix upstream: ``dim=-2``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weight(self: Any) -> Tensor:
    """Return the frozen tokens followed by the trained ones."""
    trained: Tensor = self.trainable_embedding
    if self.frozen_embedding is None:
        return trained
    frozen = self.frozen_embedding.expand(*trained.shape[:-2], -1, -1)
    return torch.cat([frozen, trained], dim=-2)


PATCHES = {"peft.tuners.cartridge.model.CartridgeEncoder.weight": property(weight)}
