"""Matrix products inside a vmapped module, computed for all lanes at once.

Compiled, they use a custom operator with a vmap rule; otherwise they leave vmap.

Tensor axes: K = lanes, n = rows of a lane, in/out = features of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bakeoff.engine.lanes.vmap_escape import call_outside_vmap, is_batched


@torch.library.custom_op("bakeoff::lane_linear", mutates_args=())
def lane_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer; under vmap a shared matrix multiplies all lanes as one batch.

    vmap's own rules for linear and matmul need sizes that are unknown when one compilation serves
    many row lengths (torch 2.11: "Cannot call numel() on tensor with symbolic sizes").
    """
    return functional.linear(x, weight, bias)


@lane_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    flat = grad.flatten(0, -2)
    return (
        grad @ weight if ctx.needs_input_grad[0] else None,
        flat.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
        flat.sum(0) if bias is not None and ctx.needs_input_grad[2] else None,
    )


def _vmap_rule(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    """Multiply ``[K, ..., in]`` by one matrix or by the lanes' matrices ``[K, out, in]``."""
    x = x.movedim(dims[0], 0) if dims[0] is not None else x.expand(info.batch_size, *x.shape)
    if dims[1] is None and dims[2] is None:
        return lane_linear(x, weight, bias), 0
    flat = x.flatten(1, -2)
    if dims[1] is None:
        out = lane_linear(flat, weight, None)
    else:
        out = torch.bmm(flat, weight.movedim(dims[1], 0).transpose(1, 2))
    if bias is not None:
        out = out + (bias.movedim(dims[2], 0)[:, None] if dims[2] is not None else bias)
    return out.view(*x.shape[:-1], out.shape[-1]), 0


lane_linear.register_autograd(_backward, setup_context=_setup_context)
lane_linear.register_vmap(_vmap_rule)


class LaneMatmuls(TorchFunctionMode):
    """Mode that redirects linear layers and matrix products to the lane-aware versions here."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Handle linear layers, and products of batches of rows with a matrix; forward the rest."""
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        if func in _MATMULS and args[0].ndim > 2 and args[1].ndim == 2:
            return _linear(args[0], args[1].t())
        return func(*args, **(kwargs or {}))


_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002  # torch's name
    """Apply a linear layer in autocast's precision; the arguments are those of ``linear``."""
    if torch.compiler.is_compiling():
        return _linear_compiled(input, weight, bias)
    if not (is_batched(input) and is_batched(weight)) or input.ndim < 2:
        return functional.linear(input, weight, bias)
    batched = [input, weight]
    if bias is not None and is_batched(bias):
        batched.append(bias)

    def multiply(stacked: Sequence[Tensor]) -> list[Tensor]:
        x, matrices, *biases = stacked
        out = torch.bmm(x.flatten(1, -2), matrices.transpose(1, 2))
        if biases:
            out = out + biases[0][:, None].to(out.dtype)
        return [out.view(*x.shape[:-1], out.shape[-1])]

    (out,) = call_outside_vmap(multiply, batched)
    return out if bias is None or is_batched(bias) else out + bias.to(out.dtype)


def _linear_compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Cast as autocast casts ``linear``, which it does not do for our operator."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    out: Tensor = lane_linear(x, weight, bias)
    return out
