"""Loss where the labels are: hidden states of supervised tokens only reach the output layer.

Used by tasks that train on tokens. ``[tokens, vocabulary]`` logits of a whole batch never exist:
the linear layer and the cross-entropy run chunk by chunk, and the gradient to the hidden states is
taken in the same pass, because a frozen output layer needs none of its own. A method's own
additions to ``outputs.loss`` (AdaLoRA's penalty, say) stay out of the comparison: no labels are
ever handed to the model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK_LOGITS = {"cuda": 1 << 27, "cpu": 1 << 21}
"""Most logits that exist at once: 0.5 GiB in fp32 on a GPU, what stays in the cache of a CPU."""
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")
"""Configuration keys of models that do more to the logits than their output layer does."""


def _logit_gradient(exact: Tensor, total: Tensor, known: Tensor, to: Tensor) -> Tensor:
    """Return the gradient of the cross-entropies to their logits."""
    hit = torch.arange(exact.shape[1], device=exact.device)[None] == to
    return torch.where(known[:, None], torch.exp(exact - total) - hit.float(), 0)


def _logit_gradient_in_place(exact: Tensor, total: Tensor, known: Tensor, to: Tensor) -> Tensor:
    """Return what ``_slope`` does, with few passes over memory where nothing fuses them."""
    slope = exact.sub_(total).exp_()
    slope.scatter_add_(1, to, slope.new_full(to.shape, -1.0))
    return slope.mul_(known[:, None].to(slope.dtype))


def _chunk_loss(
    logits: Tensor, targets: Tensor, slope: Callable[..., Tensor] = _logit_gradient
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each row, in fp32, and its gradient to the logits."""
    known, to = targets >= 0, targets.clamp(min=0)[:, None]
    exact = logits.float()
    total = torch.logsumexp(exact, -1, keepdim=True)
    losses = torch.where(known, (total - exact.gather(1, to))[:, 0], 0)
    return losses, slope(exact, total, known, to).to(logits.dtype)


_chunk_loss_in_place = functools.partial(_chunk_loss, slope=_logit_gradient_in_place)


def _compile_chunk_loss() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return ``_softmax`` compiled once for any number of rows."""
    whole = torch.compile(_chunk_loss)

    def softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for t in (logits, targets):
            torch._dynamo.maybe_mark_dynamic(t, 0)
        found: tuple[Tensor, Tensor] = whole(logits, targets)
        return found

    return softmax


class Fused:
    """Whether the chunked loss is on in this process, and what computes a chunk."""

    on: bool = True
    softmax: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = staticmethod(_chunk_loss_in_place)

    @classmethod
    def use(cls, on: bool, compiled: bool) -> None:
        """Switch the chunked loss; compiled, a chunk's logits are read twice and written once."""
        cls.on = on
        cls.softmax = staticmethod(_compile_chunk_loss() if compiled else _chunk_loss_in_place)


class SupervisedPositions(NamedTuple):
    """Where a padded batch is supervised: N positions and the token that follows each.

    ``rows``, ``columns`` and ``targets`` are ``[N]``; position (row, column) predicts the target.
    A negative target fills a fixed size up and counts for nothing.
    """

    rows: Tensor
    columns: Tensor
    targets: Tensor


IGNORE = -100


def supervised_positions(labels_BT: Tensor, size: int | None = None) -> SupervisedPositions:
    """Return the positions whose next token is labelled, with ignored ones up to ``size``."""
    rows, columns = torch.nonzero(labels_BT[:, 1:] != IGNORE, as_tuple=True)
    targets = labels_BT[rows, columns + 1]
    more = (0, (size or len(rows)) - len(rows))
    fill = functional.pad
    return SupervisedPositions(
        fill(rows, more), fill(columns, more), fill(targets, more, value=IGNORE)
    )


def token_losses(model: nn.Module, inputs: dict[str, Tensor], at: SupervisedPositions) -> Tensor:
    """Return the cross-entropy ``[N]`` at the supervised positions, in nats and fp32."""
    head = _output_layer(model)
    if not Fused.on or not can_fuse(model, head):
        return cross_entropy(supervised_logits(model, inputs, at), at.targets)
    with _replace_forward(head, lambda hidden: hidden):
        hidden = supervised_logits(model, inputs, at)
    return _linear_cross_entropy(hidden, head.weight, head.bias, at.targets)


def _output_layer(model: Any) -> Any:
    return model.get_output_embeddings()


def can_fuse(model: nn.Module, head: Any) -> bool:
    """Say whether the logits are a frozen linear layer of the hidden states and no more."""
    config = getattr(model, "config", None)
    return (
        type(head) is nn.Linear
        and not head.weight.requires_grad
        and not any(getattr(config, key, None) for key in _LOGIT_TRANSFORMS)
    )


def supervised_logits(
    model: nn.Module, inputs: dict[str, Tensor], at: SupervisedPositions
) -> Tensor:
    """Return the ``[N, vocabulary]`` logits at the supervised positions.

    A pre-hook on the output layer picks them out of its input, so any wrapper around the model
    (PEFT's included) works unmodified. Prompt methods put virtual tokens in front: positions count
    from the end of the sequence.
    """
    length = inputs["input_ids"].shape[1]

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        states = args[0]
        first = states.shape[1] - length
        # index_select, not advanced indexing: the gradient of the latter sorts its indices
        place = at.rows * states.shape[1] + at.columns + first
        return (states.flatten(0, 1).index_select(0, place),)

    handle = _output_layer(model).register_forward_pre_hook(pick)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the per-position cross-entropy ``[N]`` in nats, computed in fp32; 0 where ignored."""
    losses = functional.cross_entropy(logits.float(), targets.clamp(min=0), reduction="none")
    return torch.where(targets >= 0, losses, 0)


@contextlib.contextmanager
def _replace_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and cross-entropy by chunks of positions; saves one gradient a position."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        wanted = hidden.requires_grad
        gradient = torch.empty_like(hidden) if wanted else None
        rows = max(1, CHUNK_LOGITS[hidden.device.type] // len(weight))
        for start in range(0, len(hidden), rows):
            part, to = hidden[start : start + rows], targets[start : start + rows]
            logits = functional.linear(part.to(weight.dtype), weight, bias)
            losses[start : start + rows], slope = Fused.softmax(logits, to)
            if gradient is not None:
                gradient[start : start + rows] = slope @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None


_linear_cross_entropy: Callable[..., Tensor] = _LinearCrossEntropy.apply
