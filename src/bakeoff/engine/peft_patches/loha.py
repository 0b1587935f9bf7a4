"""LoHa: the Hadamard product as plain operations.

``peft/tuners/loha/layer.py:349`` (``HadaWeight``, ``HadaWeightCP``) are ``autograd.Function``s
without ``setup_context``, which functorch refuses. Fix upstream: the plain formula, with
autograd's backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def get_delta_weight(self: Any, adapter_name: str, *, apply_rank_dropout: bool = False) -> Tensor:
    """Return ``(A1 B1) * (A2 B2) * scale`` in the base weight's shape."""
    if apply_rank_dropout:
        own: Tensor = self.original_class.get_delta_weight(
            self, adapter_name, apply_rank_dropout=apply_rank_dropout
        )
        return own
    w1a, w1b = self.hada_w1_a[adapter_name], self.hada_w1_b[adapter_name]
    w2a, w2b = self.hada_w2_a[adapter_name], self.hada_w2_b[adapter_name]
    if adapter_name in self.hada_t1:
        core = "i j k l, j r, i p -> p r k l"
        first = torch.einsum(core, self.hada_t1[adapter_name], w1b, w1a)
        second = torch.einsum(core, self.hada_t2[adapter_name], w2b, w2a)
    else:
        first, second = w1a @ w1b, w2a @ w2b
    weight: Tensor = first * second * self.scaling[adapter_name]
    return weight.reshape(self.get_base_layer().weight.shape)


PATCHES = {"peft.tuners.loha.layer.LoHaLayer.get_delta_weight": get_delta_weight}
