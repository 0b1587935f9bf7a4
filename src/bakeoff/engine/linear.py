"""The linear layer inside a compiled unit: an operator that knows lanes, and what calls it.

Installed by ``lanes`` where compiling is on; elsewhere ``units.Fold`` keeps vmap out of frozen
layers and trained ones run as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.library.custom_op("bakeoff::lane_linear", mutates_args=())
def lane_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear layer; under vmap a shared matrix takes all lanes as one batch.

    What compiled units use for ``nn.Linear``: vmap's own rules for it ask for sizes that one
    compilation for many row lengths does not know (torch 2.11: "Cannot call numel() on tensor with
    symbolic sizes").
    """
    return functional.linear(x, weight, bias)


@lane_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    flat = grad.flatten(0, -2)
    return (
        grad @ weight if ctx.needs_input_grad[0] else None,
        flat.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
        flat.sum(0) if bias is not None and ctx.needs_input_grad[2] else None,
    )


def _lanes(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
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


lane_linear.register_autograd(_backward, setup_context=_save)
lane_linear.register_vmap(_lanes)


class Linear:
    """The forward of an ``nn.Linear`` inside a compiled unit: installed on the instance."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in the precision that autocast asks for."""
        weight: Tensor = self.module.weight
        bias: Tensor | None = self.module.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
        out: Tensor = lane_linear(x, weight, bias)
        return out
