"""Attention over packed rows: each example sees itself alone, lanes lie in the batch.

One function registered with transformers' attention interface under the name ``NAME``. While a
``Layout`` is active it runs our operator, else transformers' own SDPA with its masks. The operator
is a ``torch.library.custom_op`` with an autograd and a vmap rule (lanes fold into the batch), so
``vmap``, ``torch.compile`` and CUDA graphs all carry it. On CUDA in half precision it is the varlen
flash kernel; elsewhere, and where attention weights are dropped out, it is ``softmax``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bakeoff.engine.lanes.dropout import LaneRandom
from bakeoff.engine.packing.layout import Layout
from bakeoff.engine.packing.softmax import AttentionSettings, backward, forward

ATTENTION_NAME = "bakeoff"
UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias", "head_mask")
"""What models hand to attention beside a mask and a scale, and our kernels do not do."""


class NotPackable(Exception):
    """This model's attention does what packed rows cannot carry; the message says what."""


class ActivePass:
    """The layout and draws of the forward pass at hand; None outside packed passes."""

    layout: Layout | None = None
    random: LaneRandom | None = None


@contextlib.contextmanager
def use_layout(where: Layout | None, draws: LaneRandom | None) -> Iterator[None]:
    """Run what is inside with packed attention (or, without a layout, with SDPA)."""
    before = ActivePass.layout, ActivePass.random
    ActivePass.layout, ActivePass.random = where, draws
    try:
        yield
    finally:
        ActivePass.layout, ActivePass.random = before


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with ``[B, heads, T, head width]`` as transformers' attention interface asks.

    Raises:
        NotPackable: a mask of the model's own, a sliding window, soft-capping, sinks, or keys that
            are not the queries' tokens.
    """
    where = ActivePass.layout
    if where is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out, None
    _check_packable(where, query, key, attention_mask, kwargs)
    query, key, value = _cast_for_autocast(query, key, value)
    dropout: float = kwargs.get("dropout", 0.0)
    given = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if given is None else given
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys = noise = query.new_empty(0, dtype=torch.int32)
    if dropout > 0:
        assert ActivePass.random is not None
        keys = ActivePass.random.next_key()
        rows = len(where.scatter) // where.lanes
        weights = rows * where.longest * where.longest * query.shape[1]
        noise = ActivePass.random.noise_for((rows,), weights)
    out, _ = attend(query, key, value, *where, scale, bool(causal), dropout, keys, noise)
    return out.transpose(1, 2).contiguous(), None


def _check_packable(
    where: Layout, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    if mask is not None:
        raise NotPackable("the model builds an attention mask of its own")
    if query.shape[2] != key.shape[2] or query.shape[2] != where.gather.shape[1]:
        raise NotPackable("keys and queries are not the same tokens")
    window = kwargs.get("sliding_window")
    if window is not None and window < where.longest:
        raise NotPackable("sliding-window attention")
    for name in UNSUPPORTED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise NotPackable(f"attention with {name}")


def _cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's type, as autocast does for SDPA.

    Rotary tables of trained fp32 embeddings leave queries and keys in fp32, values in bf16.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    half = torch.get_autocast_dtype(kind)
    return tuple(x.to(half) for x in tensors)


def _build_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build SDPA's mask, or none while rows are packed."""
    if ActivePass.layout is not None:
        return None
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _build_mask)


def _use_flash(q: Tensor, dropout: float) -> bool:
    return q.is_cuda and dropout == 0 and q.dtype in (torch.float16, torch.bfloat16)


@torch.library.custom_op("bakeoff::attend", mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor,
    gather: Tensor, scatter: Tensor, filled: Tensor, real: Tensor, bounds: Tensor,
    scale: float, causal: bool, dropout: float, keys: Tensor, noise: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return ``[K, heads, T, width]`` and the log-sum-exp that the backward pass needs."""
    where = Layout(gather, scatter, filled, real, bounds)
    if _use_flash(q, dropout):
        b, h, t, d = q.shape
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(_flatten_tokens(x) for x in (q, k, v)),
            bounds, bounds, where.longest, where.longest, 0.0, causal, False, scale=scale,
        )  # fmt: skip
        return out.view(b, t, h, d).transpose(1, 2), lse
    how = AttentionSettings(scale, causal, dropout, keys, noise)
    return forward(q, k, v, where, how), q.new_empty(0, dtype=torch.float32)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, gather: Tensor, scatter: Tensor, filled: Tensor,
      real: Tensor, bounds: Tensor, scale: float, causal: bool, dropout: float, keys: Tensor,
      noise: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    b, h, t, _d = q.shape
    out = _empty_like(q)
    if _use_flash(q, dropout):
        return out, q.new_empty((h, b * t), dtype=torch.float32)
    return out, q.new_empty(0, dtype=torch.float32)


@torch.library.custom_op("bakeoff::attend_backward", mutates_args=())
def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    gather: Tensor, scatter: Tensor, filled: Tensor, real: Tensor, bounds: Tensor,
    scale: float, causal: bool, dropout: float, keys: Tensor, noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of queries, keys and values."""
    where = Layout(gather, scatter, filled, real, bounds)
    if _use_flash(q, dropout):
        b, _, t, d = q.shape
        seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
        unused = torch.empty(0, device=q.device)
        grads = torch.ops.aten._flash_attention_backward(
            *(_flatten_tokens(x) for x in (grad, q, k, v, out)),
            lse, bounds, bounds, where.longest, where.longest, 0.0, causal, seed, unused,
            scale=scale,
        )  # fmt: skip
        dq, dk, dv = (g.view(b, t, -1, d).transpose(1, 2) for g in grads)
        return dq, dk, dv
    return backward(
        grad, q, k, v, out, where, AttentionSettings(scale, causal, dropout, keys, noise)
    )


@attend_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, *layout, scale, causal, dropout, keys, noise = inputs
    ctx.save_for_backward(q, k, v, *output, *layout, keys, noise)
    ctx.settings = scale, causal, dropout


def _backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    q, k, v, out, lse, *layout, keys, noise = ctx.saved_tensors
    grads = attend_backward(
        grad.to(q.dtype), q, k, v, out, lse, *layout, *ctx.settings, keys, noise
    )
    return (*grads, *[None] * 10)


attend.register_autograd(_backward, setup_context=_setup_context)


def _vmap_rule(info: Any, dims: Any, *values: Any) -> Any:
    """Fold lanes into the batch: the layout counts all lanes' rows already."""
    q, k, v = (
        (x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)).flatten(0, 1)
        for x, d in zip(values[:3], dims[:3], strict=True)
    )
    out, lse = attend(q, k, v, *values[3:])
    # lse is for the backward pass alone, which runs outside vmap
    return (out.reshape(info.batch_size, -1, *out.shape[1:]), lse), (0, None)


attend.register_vmap(_vmap_rule)


def _flatten_tokens(x: Tensor) -> Tensor:
    """``[B, heads, T, width]`` -> ``[B * T, heads, width]``."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _empty_like(x: Tensor) -> Tensor:
    """Return memory for ``[B, heads, T, width]`` that lies as ``[B, T, heads, width]``."""
    b, h, t, d = x.shape
    return x.new_empty((b, t, h, d)).transpose(1, 2)
