"""Cartridge: frozen and trained tokens are joined along the tokens' dimension, counted from behind.

``peft/tuners/cartridge/model.py:82`` (``CartridgeEncoder.weight``) joins ``[n, width]`` tensors
along dimension 0. ``PeftModel.get_prompt`` asks it for its device before the encoder is called,
when the tensors are the lanes' (``[K, n, width]``). Remedy upstream: ``dim=-2``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weight(self: Any) -> Tensor:
    """Return the frozen tokens and the trained ones after them."""
    trained: Tensor = self.trainable_embedding
    if self.frozen_embedding is None:
        return trained
    frozen = self.frozen_embedding.expand(*trained.shape[:-2], -1, -1)
    return torch.cat([frozen, trained], dim=-2)


PATCHES = {"peft.tuners.cartridge.model.CartridgeEncoder.weight": property(weight)}
