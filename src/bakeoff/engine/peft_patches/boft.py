"""BOFT: its rotation is applied block by block.

``peft/tuners/boft/layer.py:594`` (``Linear.forward``) builds the block-diagonal rotation by
``torch.block_diag`` of hundreds of blocks (an operation and a gradient for each, which the compiler
traces one by one), multiplies it twice by a dense permutation, which is the identity at butterfly
factor 1, and rotates the input by the dense result. Here the input is multiplied by the blocks.
Fix upstream: a batched product, as in OFT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Rotate the input by the adapters' blocks, run the base layer and scale its output."""
    factors = [self.boft_R[a] for a in self.active_adapters if a in self.boft_R]
    if self.disable_adapters or self.merged or any(len(r) > 1 for r in factors):
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    rotated = x
    scale: Any = 1.0
    # PEFT multiplies each adapter's rotation from the left: the last one is applied first
    for adapter in reversed(self.active_adapters):
        if adapter not in self.boft_R:
            continue
        blocks = self.boft_dropout[adapter](self.cayley_batch(self.boft_R[adapter][0])[None])[0]
        rotated = _rotate(rotated, blocks.to(x.dtype))
        scale = self.boft_s[adapter] * scale
    result: Tensor = self.base_layer(rotated, *args, **kwargs)
    bias = self.base_layer.bias
    if factors:
        plain = result if bias is None else result - bias
        scaled = plain * scale.squeeze(-1)
        result = scaled if bias is None else scaled + bias
    return result.to(x.dtype)


def _rotate(x: Tensor, blocks: Tensor) -> Tensor:
    """Return ``x`` ``[..., n * b]`` times the block-diagonal matrix of ``[n, b, b]``."""
    count, size, _ = blocks.shape
    parts = x.reshape(-1, count, size)
    return torch.einsum("tnb,nbc->tnc", parts, blocks).reshape(x.shape)


PATCHES = {"peft.tuners.boft.layer.Linear.forward": forward}
