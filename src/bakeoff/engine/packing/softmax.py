"""Softmax attention over packed examples, forward and backward, in plain tensor operations.

What ``attention`` runs where no flash kernel is: on a CPU, in fp32, and where attention weights are
dropped out. Each example is attended to on its own ``[length, length]`` grid; the weights are
computed again in the backward pass. Written for a CPU's vector units: contiguous operands, an
additive mask and in-place products (there ``where`` with a broadcast mask takes five times as long
as a product).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bakeoff.engine.lanes.dropout import keep_mask
from bakeoff.engine.packing.layout import Layout

_MASKED = -1e30
"""Not -inf: a row without a token must stay finite."""


class AttentionSettings(NamedTuple):
    """How attention weights come about: scale, causality, dropout and its key and noise."""

    scale: float
    causal: bool
    dropout: float
    keys: Tensor
    noise: Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, where: Layout, how: AttentionSettings) -> Tensor:
    """Return ``[K, heads, T, width]``, lying as ``[K, T, heads, width]``."""
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
    used, slopes = weights, _batched_matmul(gs, vs.transpose(-1, -2)).float()
    if how.dropout > 0:
        kept = _dropout_factors(weights, how)
        used = weights * kept
        slopes.mul_(kept)
    gv = _batched_matmul(used.to(gs.dtype).transpose(-1, -2), gs)
    inner = (gs.float() * os.float()).sum(-1, keepdim=True)
    scores = slopes.sub_(inner).mul_(weights).mul_(how.scale).to(qs.dtype)
    gq, gk = _batched_matmul(scores, ks), _batched_matmul(scores.transpose(-1, -2), qs)
    gk, gv = (_sum_key_heads(g, k.shape[1]) for g in (gk, gv))
    return _from_grid(gq, where), _from_grid(gk, where), _from_grid(gv, where)


def _to_grid(x: Tensor, where: Layout, heads: int) -> Tensor:
    """``[K, heads, T, width]`` -> ``[rows, heads, length, width]``, key heads repeated.

    A place without a token holds its own example's first one: finite wherever the lane is.
    """
    _, h, _, d = x.shape
    flat = x.transpose(1, 2).reshape(-1, h, d).index_select(0, where.scatter.reshape(-1))
    out = flat.view(*where.scatter.shape, h, d).transpose(1, 2).contiguous()
    return out if h == heads else out.repeat_interleave(heads // h, dim=1)


def _from_grid(x: Tensor, where: Layout) -> Tensor:
    """``[rows, heads, length, width]`` -> ``[K, heads, T, width]``, zero where no token is."""
    _, h, _, d = x.shape
    out = x.transpose(1, 2).reshape(-1, h, d).index_select(0, where.gather.reshape(-1))
    out.mul_(where.filled.reshape(-1, 1, 1).to(out.dtype))
    return out.view(*where.gather.shape, h, d).transpose(1, 2)


def _attention_weights(q: Tensor, k: Tensor, where: Layout, how: AttentionSettings) -> Tensor:
    scores = _batched_matmul(q, k.transpose(-1, -2)).float().mul_(how.scale)
    unseen = torch.zeros(where.real.shape, device=q.device).masked_fill_(~where.real, _MASKED)
    scores.add_(unseen[:, None, None, :])
    if how.causal:
        n = where.longest
        scores.add_(torch.full((n, n), _MASKED, device=q.device).triu_(1))
    return torch.softmax(scores, -1)


def _dropout_factors(weights: Tensor, how: AttentionSettings) -> Tensor:
    mask = keep_mask(weights.numel() // len(how.keys), how.dropout, how.keys, how.noise)
    return mask.view(weights.shape).float().mul_(1 / (1 - how.dropout))


def _batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:-1], b.shape[-1])


def _sum_key_heads(x: Tensor, heads: int) -> Tensor:
    """Sum the gradients of repeated key heads."""
    return x if x.shape[1] == heads else x.view(len(x), heads, -1, *x.shape[2:]).sum(2)
