"""PVeRA: its noise belongs to the trial, and to a token.

``peft/tuners/pvera/layer.py:136`` (``PveraLayer._reparametrize``) draws ``torch.randn_like`` from
PyTorch's global stream, so under vmap a lane's noise depends on the other lanes. The noise is drawn
by key instead, as for dropout (``lanes.dropout`` sets ``keyed``). A token has the same noise in a
packed row as in the padded batch. The rest is PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bakeoff.engine.packing.tokens import padded_places, padded_shape


def reparametrize(self: Any, mu: Tensor, logvar: Tensor, adapter_name: str) -> Tensor:
    """Return a draw from this normal distribution in training, else its mean."""
    if not self.training or self.keyed is None or self.pvera_generator[adapter_name] is not None:
        own: Tensor = self.original_class._reparametrize(self, mu, logvar, adapter_name)
        return own
    std = torch.exp(0.5 * logvar)
    return mu + _noise(self.keyed, std).to(std.dtype) * std


def _noise(keyed: Any, like: Tensor) -> Tensor:
    """Return standard normals of this shape, one lane's ``[B, L, r]`` or packed ``[1, T, r]``."""
    places = padded_places(like)
    if places is None:
        drawn: Tensor = keyed.normals(like.shape)
        return drawn
    rows, length = padded_shape()
    # by example: an axis as long as a packed row would be taken for its slots (``StepPart``)
    drawn = keyed.normals((rows, 1, length * like.shape[-1]))
    return drawn.view(rows * length, -1).index_select(0, places)[None]


_OWNER = "peft.tuners.pvera.layer.PveraLayer"
PATCHES = {f"{_OWNER}._reparametrize": reparametrize, f"{_OWNER}.keyed": None}
