"""Which tokens of a layer's input are real, and to which example each belongs.

Layers that average over tokens must not see padding: a trial's numbers would depend on the length
that its batch is padded to, and packed rows have none of it. Layers that draw a number for each
example or token must draw the same ones for packed and padded rows.

Tensor axes: K = lanes, B = examples of one lane, L = padded length, T = slots of a packed row.
A layer sees one lane: padded ``[B, L, ...]``, packed ``[1, T, ...]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bakeoff.engine.packing.attention import ActivePass


@torch.library.custom_op("bakeoff::own_row", mutates_args=())
def own_row(table: Tensor, of: Tensor) -> Tensor:
    """Return the row of ``table`` ``[K, n]`` that belongs to the lane of ``of``, ``[1, n]``.

    Outside vmap there is one lane, and one row.
    """
    return table.clone()


@own_row.register_fake
def _(table: Tensor, of: Tensor) -> Tensor:
    return torch.empty_like(table)


def _vmap_rule(info: Any, dims: Any, table: Tensor, of: Tensor) -> Any:
    return table.clone().unsqueeze(1), 0


own_row.register_vmap(_vmap_rule)


class PaddingMask:
    """The attention mask of the current padded forward pass, ``[K * B, L]``; None if unknown.

    PEFT's layers are not given it. It stays until the next pass: layers that are recomputed in the
    backward pass read it again.
    """

    mask: Tensor | None = None


def packed_slots(x: Tensor) -> int | None:
    """Return T if ``x`` is the input of a packed layer, else None."""
    where = ActivePass.layout
    if where is None or x.ndim != 3 or len(x) != 1 or x.shape[1] != where.gather.shape[1]:
        return None
    return x.shape[1]


def real_tokens(x: Tensor) -> Tensor | None:
    """Return which tokens of a layer's input are real, ``x.shape[:2]``; None if it is not known."""
    where, mask = ActivePass.layout, PaddingMask.mask
    if where is not None:
        if packed_slots(x) is None:
            return None
        filled: Tensor = own_row(where.filled, x.detach())
        return filled
    if mask is None or mask.ndim != 2 or x.ndim != 3:
        return None
    if x.shape[1] != mask.shape[1] or len(mask) % len(x):
        return None
    rows = mask.bool().view(len(mask) // len(x), -1)
    real: Tensor = own_row(rows, x.detach()).view(x.shape[:2])
    return real


def mean_over_tokens(values: Tensor, x: Tensor) -> Tensor:
    """Return the mean of ``values`` ``[B, L, n]`` over the real tokens of a layer's input: ``[n]``.

    Without a mask it is the mean over all tokens, as on rows without padding.
    """
    real = real_tokens(x)
    flat = values.flatten(0, -2)
    if real is None:
        return flat.mean(0)
    weights = real.to(values.dtype).flatten()
    # a product, not a selection: the number of real tokens differs from lane to lane
    return (weights @ flat) / weights.sum()


def padded_places(x: Tensor) -> Tensor | None:
    """Return each slot's place among its lane's padded tokens, ``[T]``; None if not packed.

    A slot that is not filled has the place of the lane's first token.
    """
    where = ActivePass.layout
    if where is None or packed_slots(x) is None:
        return None
    tokens = where.scatter.numel() // where.lanes
    places: Tensor = own_row(where.gather, x.detach())[0] % tokens
    return places


def padded_shape() -> tuple[int, int]:
    """Return (B, L): one lane's part of the padded batch that is packed."""
    where = ActivePass.layout
    assert where is not None
    return len(where.scatter) // where.lanes, where.longest
