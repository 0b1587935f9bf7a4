"""Attention over packed rows: each example attends to itself only, lanes are batch rows.

``packed_attention`` is registered with transformers' attention interface. While a ``Layout`` is
active it runs our operator, otherwise transformers' own SDPA with its masks. The operator is a
``torch.library.custom_op`` with an autograd and a vmap rule (lanes are folded into the batch), so
it works with ``vmap``, ``torch.compile`` and CUDA graphs. On CUDA in half precision it is the
varlen flash kernel; elsewhere, and with dropout on attention weights, it is ``packing.softmax``.

Tensor axes: K = lanes (rows of a packed batch), H = heads, T = slots of a packed row, D = head
width, B = examples of all lanes, L = padded length. Under vmap each lane has K = 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bakeoff.engine.accelerators import Unsupported
from bakeoff.engine.lanes.dropout import LaneRandom
from bakeoff.engine.packing.layout import Layout
from bakeoff.engine.packing.softmax import AttentionSettings, backward, forward

ATTENTION_NAME = "bakeoff"
"""Name of ``packed_attention`` in transformers' attention interface."""
UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias", "head_mask")
"""Arguments of attention that some models pass and our kernels do not support."""


class NotPackable(Unsupported):
    """The model does something that packed rows do not support; the message says what."""


class AttentionFunction(Protocol):
    """Signature of a function in transformers' attention interface.

    ``query`` is ``[B, H, T, D]``, keys and values may have fewer heads; returns ``[B, T, H, D]``
    and no weights.
    """

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend."""
        ...


def register_attention(name: str, function: AttentionFunction) -> None:
    """Make an attention function available to models as implementation ``name``."""
    AttentionInterface.register(name, function)


class ActivePass:
    """Layout and random keys of the current forward pass; None outside packed passes.

    transformers calls attention without a way to pass these on. Set only through ``use_layout``,
    which restores what was there. Class attributes rather than a ``ContextVar``: compiled layers
    read them, and the backward pass, which recomputes layers, runs in another thread on CUDA,
    where a context variable would be unset.
    """

    layout: Layout | None = None
    random: LaneRandom | None = None


@contextlib.contextmanager
def use_layout(where: Layout | None, draws: LaneRandom | None) -> Iterator[None]:
    """Run the block with packed attention over this layout; None: with SDPA."""
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
    """Attend within each example of the active layout; without a layout, run SDPA.

    Raises:
        NotPackable: the model builds a mask of its own, uses a sliding window, soft-capping or
            sinks, or has keys that are not the queries' tokens.
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
    is_causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
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
    """Refuse attention that packed rows do not support.

    Raises:
        NotPackable: with the reason.
    """
    if mask is not None:
        raise NotPackable("the model builds an attention mask of its own")
    if query.shape[2] != key.shape[2] or query.shape[2] != where.gather.shape[1]:
        raise NotPackable("the keys are not those of the same tokens as the queries")
    window = kwargs.get("sliding_window")
    if window is not None and window < where.longest:
        raise NotPackable("the base uses sliding-window attention, shorter than the rows")
    for name in UNSUPPORTED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise NotPackable(f"the base uses attention with {name}")


def _cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype, as autocast does for SDPA but not for our operator.

    With trained fp32 embeddings, rotary tables leave queries and keys in fp32, values in bf16.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    half = torch.get_autocast_dtype(kind)
    return tuple(x.to(half) for x in tensors)


def _build_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build SDPA's mask; none while rows are packed, since the layout separates the examples."""
    if ActivePass.layout is not None:
        return None
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


register_attention(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _build_mask)


def _use_flash(q: Tensor, dropout: float) -> bool:
    """Return whether the varlen flash kernel serves these queries: it has no dropout by key."""
    return q.is_cuda and dropout == 0 and q.dtype in (torch.float16, torch.bfloat16)


@torch.library.custom_op("bakeoff::attend", mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor,
    gather: Tensor, scatter: Tensor, filled: Tensor, real: Tensor, bounds: Tensor,
    scale: float, causal: bool, dropout: float, keys: Tensor, noise: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return ``[K, H, T, D]`` and the log-sum-exp that the backward pass needs.

    The arguments are flat tensors rather than a ``Layout`` because a custom operator takes no
    tuples of them. ``keys`` and ``noise`` are empty without dropout.
    """
    where = Layout(gather, scatter, filled, real, bounds)
    if _use_flash(q, dropout):
        # To the kernel all rows are one sequence of K * T tokens, cut by ``bounds`` into examples
        # and, in the unused end of each row, pieces of at most ``longest`` tokens.
        b, h, t, d = q.shape
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(_flatten_tokens(x) for x in (q, k, v)),
            bounds, bounds, where.longest, where.longest, 0.0, causal, False, scale=scale,
        )  # fmt: skip
        return out.view(b, t, h, d).transpose(1, 2), lse
    how = AttentionSettings(scale, causal, dropout, keys, noise)
    # the softmax recomputes its weights in the backward pass, so it needs no log-sum-exp
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
    """Return the gradients of queries, keys and values; dropout is repeated from its keys."""
    where = Layout(gather, scatter, filled, real, bounds)
    if _use_flash(q, dropout):
        b, _, t, d = q.shape
        seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which is 0
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
    return (*grads, *[None] * 10)  # layout, settings, keys and noise have no gradient


attend.register_autograd(_backward, setup_context=_setup_context)


def _vmap_rule(info: Any, dims: Any, *values: Any) -> Any:
    """Fold lanes into the batch: the layout already describes the rows of all lanes.

    The layout, keys and noise are the same object in every lane, so vmap leaves them unbatched.
    """
    q, k, v = (
        (x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)).flatten(0, 1)
        for x, d in zip(values[:3], dims[:3], strict=True)
    )
    out, lse = attend(q, k, v, *values[3:])
    # lse is used only by the backward pass, which runs outside vmap, so it stays unbatched
    return (out.reshape(info.batch_size, -1, *out.shape[1:]), lse), (0, None)


attend.register_vmap(_vmap_rule)


def _flatten_tokens(x: Tensor) -> Tensor:
    """Return ``[K, H, T, D]`` as ``[K * T, H, D]``."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _empty_like(x: Tensor) -> Tensor:
    """Return an empty ``[K, H, T, D]`` with the memory layout of ``[K, T, H, D]``."""
    b, h, t, d = x.shape
    return x.new_empty((b, t, h, d)).transpose(1, 2)
