"""Packing: a step's examples concatenated in one row per lane, so that no padding is computed.

Tasks make padded batches ``[B, L]``. Between the first layer and the last the hidden states are
packed, ``[K, T, D]``: each lane's examples in a row of its own, with T rounded up to one of a few
sizes so that shapes repeat. Embeddings, positions and heads stay the model's own: positions restart
with each example, and a method's virtual tokens precede each example, not the row.

Tensor axes: K = lanes, B = examples of all lanes, L = padded length, T = slots of a packed row,
D = model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Layout(NamedTuple):
    """Mapping between the tokens of a padded batch and the slots of its packed rows.

    ``gather`` ``[K, T]`` is each slot's index in the flattened padded batch, ``scatter`` ``[B, L]``
    each position's index in the flattened packed rows. ``filled`` ``[K, T]`` and ``real``
    ``[B, L]`` mark the slots and positions that hold a token. ``bounds`` are the offsets of the
    examples over all K rows (int32, for varlen kernels), followed in each row by the offsets of
    pieces that cover its unused end. No piece is longer than L: a varlen kernel processes at most
    the maximum length it is given and leaves the rest of its output uninitialised.
    """

    gather: Tensor
    scatter: Tensor
    filled: Tensor
    real: Tensor
    bounds: Tensor

    @property
    def lanes(self) -> int:
        """K, the number of packed rows."""
        return len(self.gather)

    @property
    def longest(self) -> int:
        """L, the length of the padded batch: no example is longer."""
        return self.scatter.shape[1]


def make_layout(lengths: Sequence[int], lanes: int, length: int, tokens: int) -> Layout:
    """Return the layout of examples of these lengths, lane after lane, in rows of ``tokens``."""
    sizes = np.asarray(lengths, dtype=np.int64)
    per_lane = len(sizes) // lanes
    in_lane = sizes.reshape(lanes, per_lane)
    starts = np.cumsum(in_lane, 1) - in_lane + np.arange(lanes)[:, None] * tokens
    place = np.arange(length)
    real = place[None] < sizes[:, None]
    # indices without a token point at the first token of their own example or lane: values of a
    # lane that is no longer finite must not reach other lanes, not even multiplied by 0
    scatter = starts.reshape(-1, 1) + np.where(real, place[None], 0)
    gather = np.repeat(np.arange(lanes) * per_lane * length, tokens)
    filled = np.zeros(lanes * tokens, dtype=bool)
    gather[scatter[real]] = np.flatnonzero(real)
    filled[scatter[real]] = True
    ends = np.arange(lanes)[:, None] * tokens + in_lane.sum(1)[:, None]
    # as many pieces as an almost empty row would need: one shape for all steps of a graph
    pieces = ends + np.arange(-(-(tokens - per_lane) // length))[None] * length
    pieces = np.minimum(pieces, (np.arange(lanes)[:, None] + 1) * tokens)
    bounds = np.append(np.concatenate([starts, pieces], 1).reshape(-1), lanes * tokens)
    return Layout(
        torch.from_numpy(gather.reshape(lanes, tokens)),
        torch.from_numpy(scatter),
        torch.from_numpy(filled.reshape(lanes, tokens)),
        torch.from_numpy(real),
        torch.from_numpy(bounds.astype(np.int32)),
    )


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``n``."""
    return -(-n // multiple) * multiple


def choose_buckets(sizes: Sequence[int], count: int, multiple: int) -> tuple[int, ...]:
    """Return at most ``count`` row sizes, multiples of ``multiple``, that hold ``sizes``.

    Of all such choices it is the one with the fewest padded slots, found by dynamic programming
    over the distinct rounded sizes.
    """
    tops, amounts = np.unique([round_up(int(n), multiple) for n in sizes], return_counts=True)
    n_tops = len(tops)
    upto = np.concatenate([[0], np.cumsum(amounts)])
    # slots[j] = fewest slots of the first j distinct sizes under the buckets allowed so far
    slots = np.where(np.arange(n_tops + 1) == 0, 0.0, np.inf)
    cuts = []
    for _ in range(min(count, n_tops)):
        # one more bucket, of size tops[j - 1], over the distinct sizes i .. j - 1
        total = slots[:, None] + (upto[None, :] - upto[:, None]) * np.append(0, tops)[None, :]
        total = np.where(
            np.arange(n_tops + 1)[:, None] < np.arange(n_tops + 1)[None, :], total, np.inf
        )
        cuts.append(total.argmin(0))
        slots = np.append(0.0, total.min(0)[1:])
    chosen, at = [], n_tops
    for cut in reversed(cuts):
        if at == 0:
            break
        chosen.append(int(tops[at - 1]))
        at = int(cut[at])
    return tuple(reversed(chosen))


def pick_bucket(n: int, sizes: Sequence[int]) -> int:
    """Return the smallest of ``sizes`` that is at least ``n``."""
    return min(s for s in sizes if s >= n)


class _MoveTokens(torch.autograd.Function):
    """Selects tokens by index, and in backward by the inverse index, without a scatter-add."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, at: Tensor, valid: Tensor, back: Tensor, back_valid: Tensor
    ) -> Tensor:
        ctx.save_for_backward(back, back_valid)
        ctx.shape = x.shape
        return _select_tokens(x, at, valid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        back, valid = ctx.saved_tensors
        return _select_tokens(grads[0], back, valid).view(ctx.shape), None, None, None, None


def _select_tokens(x: Tensor, at: Tensor, valid: Tensor) -> Tensor:
    """Return the tokens of ``x`` at these flat indices, zero where not ``valid``."""
    rows = x.reshape(-1, *x.shape[2:]).index_select(0, at.reshape(-1))
    rows = rows * valid.reshape(-1, *[1] * (rows.ndim - 1)).to(rows.dtype)
    return rows.view(*at.shape, *x.shape[2:])


_move_tokens: Callable[..., Tensor] = _MoveTokens.apply


def pack(x: Tensor, where: Layout) -> Tensor:
    """Return ``[B, L, ...]`` as ``[K, T, ...]``, zero where a slot is not filled."""
    return _move_tokens(x, where.gather, where.filled, where.scatter, where.real)


def unpack(x: Tensor, where: Layout) -> Tensor:
    """Return ``[K, T, ...]`` as ``[B, L, ...]``, zero where there is no token."""
    return _move_tokens(x, where.scatter, where.real, where.gather, where.filled)
