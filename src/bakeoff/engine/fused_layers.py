"""Frozen parts of a base in fewer kernels: RMS norms and rotary position embeddings.

On a GPU a step of a small base takes as long as its number of kernels, not its arithmetic. An RMS
norm of transformers is 8 kernels and 13 backward, a rotary embedding 5 and 8; PyTorch's fused norm
is one each way, and a rotation here three. A lane is only batch to them. Each is used only where it
gives what the base's own code gives on random input.

Tensor axes: D = width of a head or state.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROTARY = "apply_rotary_pos_emb"
"""Name of the function in transformers' model files."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Largest difference from the base's own code: two roundings of values around 1."""


def fuse_frozen_layers(model: nn.Module) -> int:
    """Replace the forward of a model's frozen RMS norms and of its attention; return their number.

    The replacements are set on the instances. They may be set again.
    """
    norms = [m for m in model.modules() if _is_frozen_rms_norm(m)]
    agree = {key: _norm_agrees(m) for key, m in {_norm_kind(m): m for m in norms}.items()}
    fused: list[nn.Module] = []
    for module in norms:
        if agree[_norm_kind(module)]:
            module.forward = FusedRmsNorm(module)
            fused.append(module)
    forwards: dict[type[nn.Module], Callable[..., Any] | None] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in forwards:
            forwards[kind] = _attention_forward(module)
        forward = forwards[kind]
        if forward is not None:
            module.forward = types.MethodType(forward, module)
            fused.append(module)
    return len(fused)


class FusedRmsNorm:
    """Replacement for the forward of one RMS norm, set on the instance."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.eps = _epsilon(module)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the norm over the last axis, times the weight."""
        weight = self.module.weight
        if hidden_states.dtype != weight.dtype:  # the base's own code decides the dtype
            out: Tensor = type(self.module).forward(self.module, hidden_states)
            return out
        with torch.autocast(hidden_states.device.type, enabled=False):
            return functional.rms_norm(hidden_states, weight.shape, weight, self.eps)


class _Rotate(torch.autograd.Function):
    """Rotates pairs of features by an angle for each position (RoFormer, arXiv 2104.09864).

    ``signed`` is the sine with its first half negated, so that a roll takes the place of
    transformers' ``rotate_half``; ``rolled`` has its halves exchanged.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed: Tensor, rolled: Tensor) -> Tensor:
        ctx.save_for_backward(cos, rolled)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (cos, rolled) = grads, ctx.saved_tensors
        turned = grad.roll(grad.shape[-1] // 2, -1)
        return torch.addcmul(grad * cos, turned, rolled), None, None, None


_rotate: Callable[..., Tensor] = _Rotate.apply


class _Rotation:
    """Rotates queries and keys; all layers of a pass share what is computed from the sine."""

    def __init__(self) -> None:
        self._sine: weakref.ref[Tensor] | None = None
        self._parts: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys, rotated, in the form of transformers' function."""
        if self._parts is None or self._sine is None or self._sine() is not sin:
            half = sin.shape[-1] // 2
            first, second = -sin[..., :half], sin[..., half:]
            self._parts = torch.cat((first, second), -1), torch.cat((second, first), -1)
            self._sine = weakref.ref(sin)
        parts = [x.unsqueeze(unsqueeze_dim) for x in (cos, *self._parts)]
        turned: list[Tensor] = [_rotate(x, *parts) for x in (q, k)]
        return turned[0], turned[1]


def _epsilon(module: nn.Module) -> float | None:
    """Return the epsilon of an RMS norm, None if it has none."""
    values = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
    return next((v for v in values if isinstance(v, float)), None)


def _is_frozen_rms_norm(module: nn.Module) -> bool:
    """Return whether a module looks like an RMS norm with one frozen weight."""
    own = [*module.named_parameters(), *module.named_buffers()]
    return (
        type(module).__name__.endswith("RMSNorm")
        and [name for name, _ in own] == ["weight"]
        and own[0][1].ndim == 1
        and not own[0][1].requires_grad
        and _epsilon(module) is not None
    )


def _norm_kind(module: nn.Module) -> Any:
    """Return what decides whether a norm agrees with the fused one."""
    weight: Any = module.weight
    return type(module), weight.dtype, _epsilon(module)


@torch.no_grad()
def _norm_agrees(module: nn.Module) -> bool:
    """Return whether the fused norm gives what the module's own code gives."""
    weight: Any = module.weight
    x = _random(weight, 4, len(weight))
    try:
        expected = type(module).forward(module, x)
        return _close(FusedRmsNorm(module)(x), expected)
    except Exception:  # code of any base: without agreement it stays as it is
        return False


def _attention_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the forward of an attention module with the rotation replaced, None if it has none.

    It is the class's own function, with another function under one name in its globals.
    """
    forward: Any = type(module).forward
    code = getattr(forward, "__code__", None)
    if code is None or ROTARY not in code.co_names or hasattr(forward, "__wrapped__"):
        return None
    original = forward.__globals__.get(ROTARY)
    weight = next(module.parameters(), None)
    if original is None or weight is None or not _rotation_agrees(original, weight):
        return None
    return types.FunctionType(
        code, {**forward.__globals__, ROTARY: _Rotation()}, forward.__name__, forward.__defaults__,
        forward.__closure__,
    )  # fmt: skip


def _rotation_agrees(original: Any, weight: Tensor) -> bool:
    """Return whether our rotation gives what this one gives, forward and backward."""
    like = weight if weight.dtype in TOLERANCE else torch.empty(0, device=weight.device)
    q, k = (_random(like, 2, heads, 3, 8).requires_grad_() for heads in (4, 2))
    # as a base makes them: each half of the features has the same angles
    angles = _random(like.float(), 2, 3, 4).repeat(1, 1, 2)
    cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    try:
        with torch.enable_grad():
            sides = [f(q, k, cos, sin) for f in (original, _Rotation())]
            totals = [x.pow(2).sum() + y.pow(2).sum() for x, y in sides]
            slopes = [torch.autograd.grad(total, (q, k)) for total in totals]
    except Exception:  # code of any base: without agreement it stays as it is
        return False
    found = [torch.cat([x.flatten() for x in (*s, *g)]) for s, g in zip(sides, slopes, strict=True)]
    return found[0].shape == found[1].shape and _close(found[1], found[0])


def _random(like: Tensor, *shape: int) -> Tensor:
    """Return fixed random numbers with the dtype and device of ``like``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two results are within rounding."""
    limit = TOLERANCE[theirs.dtype]
    same = ours.dtype == theirs.dtype
    return same and torch.allclose(ours.float(), theirs.float(), rtol=limit, atol=limit)
