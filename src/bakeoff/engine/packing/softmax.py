"""Softmax attention over packed examples, forward and backward, in plain tensor operations.

Used where no flash kernel applies: on a CPU, in fp32, and with dropout on attention weights. Each
example is attended to on its own ``[L, L]`` grid; the weights are recomputed in the backward pass.
Written for the vector units of a CPU: contiguous operands, an additive mask and in-place products
(``where`` with a broadcast mask takes five times as long there as a product).

Tensor axes: K = lanes, H = heads, T = slots of a packed row, D = head width, B = examples of all
lanes, L = padded length. Packed ``[K, H, T, D]``, grid ``[B, H, L, D]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bakeoff.engine.lanes.dropout import keep_mask
from bakeoff.engine.packing.layout import Layout

_MASKED = -1e30
"""Additive mask; not -inf, because a row without a token must stay finite."""


class AttentionSettings(NamedTuple):
    """How attention weights are computed: scale, causality, dropout with its keys and noise."""

    scale: float
    causal: bool
    dropout: float
    keys: Tensor
    noise: Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, where: Layout, how: AttentionSettings) -> Tensor:
    """Return ``[K, H, T, D]``, with the memory layout of ``[K, T, H, D]``."""
    heads = q.shape[1]
    qs, ks, vs = (_to_grid(x, where, heads) for x in (q, k, v))
    weights = _attention_weights(qs, ks, where, how)
    if how.dropout > 0:
        weights.mul_(_dropout_factors(weights, how))
    return _from_grid(_batched_matmul(weights.to(vs.dtype), vs), where)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    where: Layout,
    how: AttentionSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    heads = q.shape[1]
    qs, ks, vs, gs, os = (_to_grid(x, where, heads) for x in (q, k, v, grad, out))
    gs.mul_(where.real[:, None, :, None].to(gs.dtype))
    weights = _attention_weights(qs, ks, where, how)
    dropped, slopes = weights, _batched_matmul(gs, vs.transpose(-1, -2)).float()
    if how.dropout > 0:
        factors = _dropout_factors(weights, how)
        dropped = weights * factors
        slopes.mul_(factors)
    gv = _batched_matmul(dropped.to(gs.dtype).transpose(-1, -2), gs)
    # the softmax's Jacobian: w * (g - sum(w * g)), and that sum is the product of grad and output
    inner = (gs.float() * os.float()).sum(-1, keepdim=True)
    scores = slopes.sub_(inner).mul_(weights).mul_(how.scale).to(qs.dtype)
    gq, gk = _batched_matmul(scores, ks), _batched_matmul(scores.transpose(-1, -2), qs)
    gk, gv = (_sum_key_heads(g, k.shape[1]) for g in (gk, gv))
    return _from_grid(gq, where), _from_grid(gk, where), _from_grid(gv, where)


def _to_grid(x: Tensor, where: Layout, heads: int) -> Tensor:
    """Return ``[K, h, T, D]`` as ``[B, heads, L, D]``, with key heads repeated.

    A position without a token holds the first token of its own example, so it is finite if its
    lane is.
    """
    _, h, _, d = x.shape
    flat = x.transpose(1, 2).reshape(-1, h, d).index_select(0, where.scatter.reshape(-1))
    out = flat.view(*where.scatter.shape, h, d).transpose(1, 2).contiguous()
    return out if h == heads else out.repeat_interleave(heads // h, dim=1)


def _from_grid(x: Tensor, where: Layout) -> Tensor:
    """Return ``[B, H, L, D]`` as ``[K, H, T, D]``, zero where a slot is not filled."""
    _, h, _, d = x.shape
    out = x.transpose(1, 2).reshape(-1, h, d).index_select(0, where.gather.reshape(-1))
    out.mul_(where.filled.reshape(-1, 1, 1).to(out.dtype))
    return out.view(*where.gather.shape, h, d).transpose(1, 2)


def _attention_weights(q: Tensor, k: Tensor, where: Layout, how: AttentionSettings) -> Tensor:
    """Return the attention weights ``[B, H, L, L]`` in fp32, before dropout."""
    scores = _batched_matmul(q, k.transpose(-1, -2)).float().mul_(how.scale)
    padding = torch.zeros(where.real.shape, device=q.device).masked_fill_(~where.real, _MASKED)
    scores.add_(padding[:, None, None, :])
    if how.causal:
        n = where.longest
        scores.add_(torch.full((n, n), _MASKED, device=q.device).triu_(1))
    return torch.softmax(scores, -1)


def _dropout_factors(weights: Tensor, how: AttentionSettings) -> Tensor:
    """Return the factor of each weight: 0 where dropped, ``1 / (1 - p)`` elsewhere."""
    mask = keep_mask(weights.numel() // len(how.keys), how.dropout, how.keys, how.noise)
    return mask.view(weights.shape).float().mul_(1 / (1 - how.dropout))


def _batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product over the last two axes."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:-1], b.shape[-1])


def _sum_key_heads(x: Tensor, heads: int) -> Tensor:
    """Sum the gradients of key heads that were repeated."""
    return x if x.shape[1] == heads else x.view(len(x), heads, -1, *x.shape[2:]).sum(2)
