"""PVeRA: its noise belongs to the trial.

``peft/tuners/pvera/layer.py:136`` (``PveraLayer._reparametrize``) draws ``torch.randn_like`` from
PyTorch's global stream, so under vmap a lane's noise depends on the other lanes. The noise is drawn
by key instead, as for dropout (``lanes.dropout`` sets ``keyed``); the rest is PEFT's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def normal(bits: Tensor) -> Tensor:
    """Return standard normals from uniform int32."""
    uniform = ((bits >> 8).float() + 0.5) * 2.0**-23
    return torch.erfinv(uniform) * math.sqrt(2)


def reparametrize(self: Any, mu: Tensor, logvar: Tensor, adapter_name: str) -> Tensor:
    """Return a draw from this normal distribution in training, else its mean."""
    if not self.training or self.keyed is None or self.pvera_generator[adapter_name] is not None:
        own: Tensor = self.original_class._reparametrize(self, mu, logvar, adapter_name)
        return own
    std = torch.exp(0.5 * logvar)
    return mu + normal(self.keyed.bits(std.shape)).to(std.dtype) * std


_OWNER = "peft.tuners.pvera.layer.PveraLayer"
PATCHES = {f"{_OWNER}._reparametrize": reparametrize, f"{_OWNER}.keyed": None}
