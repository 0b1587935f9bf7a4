"""RandLoRA: the random basis is scaled by plain operations.

``peft/tuners/randlora/layer.py:303`` (``Linear.get_scaled_bases``) scales it in ``UniqueBaseGrad``
(``layer.py:30``), an ``autograd.Function`` without ``setup_context``, which functorch refuses.
Fix upstream: the plain formula; autograd then saves one more product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class ScaledBases(NamedTuple):
    """The two bases in the order in which they are applied to the layer's input."""

    first: Tensor
    second: Tensor


def get_scaled_bases(
    self: Any, adapter: str, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the shared random bases, cut to the layer's size, with the smaller one scaled."""
    a, b = self.randlora_A[adapter], self.randlora_B[adapter]
    device = b.device if device is None else device
    scale = self.randlora_lambda[adapter].to(device)
    gamma = self.randlora_gamma[adapter].to(device)
    if device.type == "cpu" and b.dtype in (torch.float16, torch.bfloat16):
        a, b, scale, gamma = a.float(), b.float(), scale.float(), gamma.float()
    small, large = sorted((self.out_features, self.in_features))
    a = a[:, : self.num_bases, :small].to(device)
    b = b[:large, : self.num_bases, :].to(device).flatten(start_dim=1)
    a = (scale[:, :, None] * a * gamma[None]).flatten(end_dim=1)
    return ScaledBases(a, b) if small == self.in_features else ScaledBases(b.T, a.T)


PATCHES = {"peft.tuners.randlora.layer.Linear.get_scaled_bases": get_scaled_bases}
