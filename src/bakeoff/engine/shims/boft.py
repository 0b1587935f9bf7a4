"""BOFT: block-diagonal matrices are laid out by plain operations.

``peft/tuners/boft/layer.py:620`` (``Linear.forward``) calls ``FastBlockDiag`` where PEFT could
build its CUDA extension: an ``autograd.Function`` without ``setup_context``, which functorch
refuses, around a kernel that knows no lanes. Remedy upstream: the plain formula. Where the
extension is missing PEFT rides as it is, and its own code runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def block_diagonal(blocks: Tensor) -> Tensor:
    """Return blocks ``[N, D, H, H]`` as matrices ``[N, D * H, D * H]``."""
    n, d, h, _ = blocks.shape
    own = torch.eye(d, device=blocks.device, dtype=torch.bool)[:, None, :, None]
    return torch.where(own, blocks[:, :, :, None, :], 0).reshape(n, d * h, d * h)


def rotation(self: Any, adapter: str, like: Tensor) -> Tensor:
    """Return the product of an adapter's butterfly factors."""
    blocks = self.boft_R[adapter]
    turned = self.boft_dropout[adapter](self.cayley_batch(blocks.flatten(0, 1)).view(blocks.shape))
    permutation = self.boft_P.to(like)
    inner = torch.bmm(block_diagonal(turned).to(like), permutation.permute(0, 2, 1))
    factors = torch.bmm(permutation, inner)
    product = factors[0]
    for factor in factors[1:]:
        product = factor @ product
    return product


def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Rotate the input, run the base layer, scale its output without the bias."""
    active = [a for a in self.active_adapters if a in self.boft_R]
    if self.disable_adapters or self.merged or not active or not self.fbd_cuda_available:
        own: Tensor = self.stands_in_for.forward(self, x, *args, **kwargs)
        return own
    dtype = x.dtype
    turn = rotation(self, active[0], x)
    scale = self.boft_s[active[0]]
    for adapter in active[1:]:
        turn = rotation(self, adapter, x) @ turn
        scale = self.boft_s[adapter] * scale
    result = self.base_layer(x @ turn.to(dtype), *args, **kwargs)
    bias = 0 if self.base_layer.bias is None else self.base_layer.bias
    out: Tensor = (result - bias) * scale.squeeze(-1) + bias
    return out.to(dtype)


STAND_INS = {"peft.tuners.boft.layer.Linear.forward": forward}
