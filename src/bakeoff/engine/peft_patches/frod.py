"""FRoD: the sparse rotation is a dense matrix.

``peft/tuners/frod/layer.py:259`` (``Linear._get_frod_tensors``) makes a ``sparse_coo_tensor`` and
coalesces it; neither has a batching rule. ``_sparse_activation_mm`` multiplies by it. The dense
basis is as large. Fix upstream: ``index_put`` into zeros, a dense product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class FrodFactors(NamedTuple):
    """The adapted weight is ``U (S + diag(scale)) V^T``."""

    u: Tensor
    v: Tensor
    s: Tensor
    scale: Tensor


def get_frod_tensors(
    self: Any, adapter: str, *, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the factors of the adapted weight."""
    values = self.frod_lambda_s_values[adapter].to(device=device, dtype=dtype)
    scale = self.frod_lambda_l[adapter].to(device=device, dtype=dtype)
    rows, columns = self.frod_s_indices[adapter].to(device=device, dtype=torch.long)
    size = scale.shape[0]
    flat = values.new_zeros(size * size).scatter_add(0, rows * size + columns, values)
    return FrodFactors(
        self.frod_U[adapter].to(device=device, dtype=dtype),
        self.frod_V[adapter].to(device=device, dtype=dtype),
        flat.view(size, size),
        scale,
    )


def sparse_activation_mm(self: Any, z_flat: Tensor, s: Tensor) -> Tensor:
    """Multiply the rows of ``z_flat`` by the rotation."""
    return z_flat @ s.T


_OWNER = "peft.tuners.frod.layer"
PATCHES = {
    f"{_OWNER}.Linear._get_frod_tensors": get_frod_tensors,
    f"{_OWNER}.Linear._sparse_activation_mm": sparse_activation_mm,
}
