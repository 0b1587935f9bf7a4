"""Lily: its router averages over real tokens.

``peft/tuners/lily/layer.py:150`` (``Linear.forward``) mixes its experts by the router's mean over
all tokens of the batch, padding included (``router_probability.reshape(-1, num_B).mean(dim=0)``). A
lane's result would depend on the length that its batch is padded to, and packed rows have another
mean. The mean over real tokens is PEFT's on rows without padding. Fix upstream: exclude padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bakeoff.engine.packing.tokens import mean_over_tokens


def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Add the experts' mixture to the base layer's output."""
    if self.disable_adapters:
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    result: Tensor = self.base_layer(x, *args, **kwargs)
    for adapter in self.active_adapters:
        if adapter not in self.lily_A:
            continue
        down, up = self.lily_A[adapter], self.lily_B[adapter].weight
        hidden = down(self._cast_input_dtype(x, down.weight.dtype))
        probabilities = functional.softmax(self.lily_router[adapter](hidden), dim=-1)
        experts = up.reshape(self.num_B[adapter], -1, up.shape[1])
        mixed = torch.einsum("e,eio->io", mean_over_tokens(probabilities, x), experts)
        delta = torch.matmul(hidden, mixed) * self.scaling[adapter]
        result = result + delta.to(result.dtype)
    return result


PATCHES = {"peft.tuners.lily.layer.Linear.forward": forward}
