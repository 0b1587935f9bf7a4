"""Trainable tokens: the indices of the trained rows are copied to the device once.

``peft/tuners/trainable_tokens/layer.py:223`` (``TrainableTokensLayer.get_merged_weights``) creates
the index from a list in each forward pass: a copy from the host, which no CUDA graph can capture.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@functools.cache
def row_index(tokens: tuple[int, ...], device: torch.device) -> Tensor:
    """Return token ids as an index on the device."""
    return torch.tensor(tokens, device=device)


def get_merged_weights(self: Any, active_adapters: Sequence[str]) -> Tensor:
    """Return the embedding with the trained rows inserted."""
    weight: Tensor = self.base_layer.weight
    for name in active_adapters:
        index = row_index(tuple(self.token_indices[name]), weight.device)
        weight = weight.index_copy(0, index, self.trainable_tokens_delta[name].to(weight))
    return weight


_OWNER = "peft.tuners.trainable_tokens.layer.TrainableTokensLayer"
PATCHES = {f"{_OWNER}.get_merged_weights": get_merged_weights}
