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

_UNSEEN = -1e30
"""Not -inf: a row without a token must stay finite."""


class Weighing(NamedTuple):
    """How attention weights come about: scale, causality, dropout and its key and noise."""

    scale: float
    causal: bool
    dropout: float
    keys: Tensor
    noise: Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, where: Layout, how: Weighing) -> Tensor:
    """Return ``[K, heads, T, width]``, lying as ``[K, T, heads, width]``."""
    heads = q.shape[1]
    qs, ks, vs = (_examples(x, where, heads) for x in (q, k, v))
    weights = _weights(qs, ks, where, how)
    if how.dropout > 0:
        weights.mul_(_kept(weights, how))
    return _rows(_product(weights.to(vs.dtype), vs), where)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, where: Layout, how: Weighing
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    heads = q.shape[1]
    qs, ks, vs, gs, os = (_examples(x, where, heads) for x in (q, k, v, grad, out))
    gs.mul_(where.real[:, None, :, None].to(gs.dtype))
    weights = _weights(qs, ks, where, how)
    used, slopes = weights, _product(gs, vs.transpose(-1, -2)).float()
    if how.dropout > 0:
        kept = _kept(weights, how)
        used = weights * kept
        slopes.mul_(kept)
    gv = _product(used.to(gs.dtype).transpose(-1, -2), gs)
    inner = (gs.float() * os.float()).sum(-1, keepdim=True)
    scores = slopes.sub_(inner).mul_(weights).mul_(how.scale).to(qs.dtype)
    gq, gk = _product(scores, ks), _product(scores.transpose(-1, -2), qs)
    gk, gv = (_summed(g, k.shape[1]) for g in (gk, gv))
    return _rows(gq, where), _rows(gk, where), _rows(gv, where)


def _examples(x: Tensor, where: Layout, heads: int) -> Tensor:
    """``[K, heads, T, width]`` -> ``[rows, heads, length, width]``, key heads repeated.

    A place without a token holds its own example's first one: finite wherever the lane is.
    """
    _, h, _, d = x.shape
    flat = x.transpose(1, 2).reshape(-1, h, d).index_select(0, where.scatter.reshape(-1))
    out = flat.view(*where.scatter.shape, h, d).transpose(1, 2).contiguous()
    return out if h == heads else out.repeat_interleave(heads // h, dim=1)


def _rows(x: Tensor, where: Layout) -> Tensor:
    """``[rows, heads, length, width]`` -> ``[K, heads, T, width]``, zero where no token is."""
    _, h, _, d = x.shape
    out = x.transpose(1, 2).reshape(-1, h, d).index_select(0, where.gather.reshape(-1))
    out.mul_(where.filled.reshape(-1, 1, 1).to(out.dtype))
    return out.view(*where.gather.shape, h, d).transpose(1, 2)


def _weights(q: Tensor, k: Tensor, where: Layout, how: Weighing) -> Tensor:
    scores = _product(q, k.transpose(-1, -2)).float().mul_(how.scale)
    unseen = torch.zeros(where.real.shape, device=q.device).masked_fill_(~where.real, _UNSEEN)
    scores.add_(unseen[:, None, None, :])
    if how.causal:
        n = where.longest
        scores.add_(torch.full((n, n), _UNSEEN, device=q.device).triu_(1))
    return torch.softmax(scores, -1)


def _kept(weights: Tensor, how: Weighing) -> Tensor:
    mask = keep_mask(weights.numel() // len(how.keys), how.dropout, how.keys, how.noise)
    return mask.view(weights.shape).float().mul_(1 / (1 - how.dropout))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:-1], b.shape[-1])


def _summed(x: Tensor, heads: int) -> Tensor:
    """Sum the gradients of repeated key heads."""
    return x if x.shape[1] == heads else x.view(len(x), heads, -1, *x.shape[2:]).sum(2)
