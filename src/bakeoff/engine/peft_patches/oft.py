"""OFT: its rotation blocks are built out of place.

``peft/tuners/oft/layer.py:109`` (``OFTRotationModule._pytorch_skew_symmetric``) writes the trained
vector into ``torch.zeros`` (``matrix[:, rows, cols] = vec``), and ``_cayley_batch`` adds to
``torch.eye`` in place (``R.add_(Q_skew)``). Under vmap the written tensor has no lane dimension, so
the lanes' values do not fit. Fix upstream: ``scatter`` and ``torch.add``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def skew_symmetric(self: Any, vec: Tensor, block_size: int) -> Tensor:
    """Return the skew-symmetric matrices whose upper triangles are ``vec``."""
    place = (self.rows * block_size + self.cols).expand(vec.shape[0], -1)
    flat = vec.new_zeros(vec.shape[0], block_size * block_size).scatter(1, place, vec)
    matrix = flat.view(-1, block_size, block_size)
    return matrix - matrix.transpose(-2, -1)


def cayley_batch(
    self: Any,
    Q: Tensor,
    block_size: int,
    use_cayley_neumann: bool = True,
    num_neumann_terms: int = 5,
) -> Tensor:
    """Return the rotations of skew-symmetric blocks by Cayley's formula or its Neumann series."""
    if not use_cayley_neumann:
        exact: Tensor = self.original_class._cayley_batch(self, Q, block_size, False)
        return exact
    skew = self._pytorch_skew_symmetric(Q, block_size)
    out = torch.eye(block_size, device=Q.device, dtype=Q.dtype).repeat(Q.shape[0], 1, 1)
    if num_neumann_terms > 1:
        out = torch.add(out, skew, alpha=2.0)
        if num_neumann_terms > 2:
            power = torch.bmm(skew, skew)
            out = torch.add(out, power, alpha=2.0)
            for _ in range(3, num_neumann_terms - 1):
                power = torch.bmm(power, skew)
                out = torch.add(out, power, alpha=2.0)
            out = out + torch.bmm(power, skew)
    return out


_OWNER = "peft.tuners.oft.layer.OFTRotationModule"
PATCHES = {
    f"{_OWNER}._pytorch_skew_symmetric": skew_symmetric,
    f"{_OWNER}._cayley_batch": cayley_batch,
}
