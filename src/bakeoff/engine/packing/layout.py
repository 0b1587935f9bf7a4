"""Packing: a step's examples end to end in one row, while the layers run; no padding is computed.

Tasks hand over padded batches ``[rows, length]``. Between the first layer and the last the hidden
states lie packed, ``[K, T, width]``: each lane's examples in a row of its own, T rounded up to one
of a few sizes so that shapes repeat. Embeddings, positions and heads stay the model's own, so that
positions restart with each example, and a method's virtual tokens stand before each example, not
before the row. Read by ``layers`` (which moves the states) and ``attention`` (which keeps the
examples apart).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Layout(NamedTuple):
    """Where each token of a padded batch lies when packed.

    ``gather`` ``[K, T]`` gives a slot's place in the flattened padded batch, ``scatter``
    ``[rows, length]`` a place's slot; ``filled`` and ``real`` say which slots and places hold a
    token. ``bounds`` holds the examples' offsets over all K rows (int32, for varlen kernels); what
    is left of a row follows in pieces. None is longer than ``length``: such a kernel goes no
    further than the longest it was told of, and leaves the rest as memory happened to be.
    """

    gather: Tensor
    scatter: Tensor
    filled: Tensor
    real: Tensor
    bounds: Tensor

    @property
    def lanes(self) -> int:
        """K: how many rows the packed batch has."""
        return len(self.gather)

    @property
    def longest(self) -> int:
        """Length of the padded batch: no example is longer."""
        return self.scatter.shape[1]


def make_layout(lengths: Sequence[int], lanes: int, length: int, tokens: int) -> Layout:
    """Return the layout of ``lengths`` (all lanes' rows, lane after lane) in rows of ``tokens``."""
    sizes = np.asarray(lengths, dtype=np.int64)
    per_lane = len(sizes) // lanes
    in_lane = sizes.reshape(lanes, per_lane)
    starts = np.cumsum(in_lane, 1) - in_lane + np.arange(lanes)[:, None] * tokens
    place = np.arange(length)
    real = place[None] < sizes[:, None]
    # what holds no token points at the first of its own example, or lane: a lane that is not finite
    # any more must not reach its neighbours
    scatter = starts.reshape(-1, 1) + np.where(real, place[None], 0)
    gather = np.repeat(np.arange(lanes) * per_lane * length, tokens)
    filled = np.zeros(lanes * tokens, dtype=bool)
    gather[scatter[real]] = np.flatnonzero(real)
    filled[scatter[real]] = True
    ends = np.arange(lanes)[:, None] * tokens + in_lane.sum(1)[:, None]
    # as many pieces as the emptiest row could need: one shape for all steps of a graph
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
    """Return the smallest multiple that is not below ``n``."""
    return -(-n // multiple) * multiple


def choose_buckets(sizes: Sequence[int], count: int, multiple: int) -> tuple[int, ...]:
    """Return at most ``count`` row sizes, multiples of ``multiple``, that hold ``sizes``.

    Of all such choices the one with the fewest padded slots, by dynamic programming over the
    distinct rounded sizes.
    """
    tops, amounts = np.unique([round_up(int(n), multiple) for n in sizes], return_counts=True)
    many = len(tops)
    upto = np.concatenate([[0], np.cumsum(amounts)])
    # slots[j] = fewest slots of the first j distinct sizes under the buckets allowed so far
    slots = np.where(np.arange(many + 1) == 0, 0.0, np.inf)
    cuts = []
    for _ in range(min(count, many)):
        # one more bucket, of size tops[j - 1], over the distinct sizes i .. j - 1
        held = slots[:, None] + (upto[None, :] - upto[:, None]) * np.append(0, tops)[None, :]
        held = np.where(np.arange(many + 1)[:, None] < np.arange(many + 1)[None, :], held, np.inf)
        cuts.append(held.argmin(0))
        slots = np.append(0.0, held.min(0)[1:])
    chosen, at = [], many
    for cut in reversed(cuts):
        if at == 0:
            break
        chosen.append(int(tops[at - 1]))
        at = int(cut[at])
    return tuple(reversed(chosen))


def pick_bucket(n: int, sizes: Sequence[int]) -> int:
    """Return the smallest of ``sizes`` that holds ``n``."""
    return min(s for s in sizes if s >= n)


class _MoveTokens(torch.autograd.Function):
    """Rows by index, and back by the inverse index: no scatter-add in either direction."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, at: Tensor, held: Tensor, back: Tensor, back_held: Tensor
    ) -> Tensor:
        ctx.save_for_backward(back, back_held)
        ctx.shape = x.shape
        return _select_tokens(x, at, held)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        back, held = ctx.saved_tensors
        return _select_tokens(grads[0], back, held).view(ctx.shape), None, None, None, None


def _select_tokens(x: Tensor, at: Tensor, held: Tensor) -> Tensor:
    rows = x.reshape(-1, *x.shape[2:]).index_select(0, at.reshape(-1))
    rows = rows * held.reshape(-1, *[1] * (rows.ndim - 1)).to(rows.dtype)
    return rows.view(*at.shape, *x.shape[2:])


_move_tokens: Callable[..., Tensor] = _MoveTokens.apply


def pack(x: Tensor, where: Layout) -> Tensor:
    """Return ``[rows, length, ...]`` as ``[K, T, ...]``."""
    return _move_tokens(x, where.gather, where.filled, where.scatter, where.real)


def unpack(x: Tensor, where: Layout) -> Tensor:
    """Return ``[K, T, ...]`` as ``[rows, length, ...]``, zero where there is no token."""
    return _move_tokens(x, where.scatter, where.real, where.gather, where.filled)
