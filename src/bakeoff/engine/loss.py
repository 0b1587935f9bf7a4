"""Cross-entropy at the supervised positions only, in chunks.

Hidden states of unsupervised tokens never reach the output layer, and the ``[tokens, vocabulary]``
logits of a whole batch never exist: the linear layer and the cross-entropy run chunk by chunk. The
gradient with respect to the hidden states is computed in the same pass, because a frozen output
layer needs none. No labels are passed to the model, so a method's own additions to
``outputs.loss`` (AdaLoRA's penalty, for example) stay out of the comparison.

Tensor axes: B = rows of a batch, T = tokens, N = supervised positions, V = vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from bakeoff.engine.packing.attention import ActivePass

CHUNK_LOGITS = {"cuda": 1 << 27, "cpu": 1 << 21}
"""Maximum number of logits at once: 0.5 GiB in fp32 on a GPU, what fits in the cache of a CPU."""
_LOGIT_TRANSFORMS = (
    "final_logit_softcapping", "lm_head_multiplier", "logit_scale", "logits_scaling",
    "logits_soft_cap", "output_logit_soft_cap",
)  # fmt: skip
"""Configuration keys of models whose logits are not just the output of their last layer."""

ChunkLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps logits ``[n, V]`` and targets ``[n]`` to losses ``[n]`` and the gradient to the logits."""


def _logit_gradient(exact: Tensor, total: Tensor, known: Tensor, to: Tensor) -> Tensor:
    """Return the gradient of the cross-entropies with respect to their logits."""
    hit = torch.arange(exact.shape[1], device=exact.device)[None] == to
    return torch.where(known[:, None], torch.exp(exact - total) - hit.float(), 0)


def _logit_gradient_in_place(exact: Tensor, total: Tensor, known: Tensor, to: Tensor) -> Tensor:
    """Return what ``_logit_gradient`` does, in fewer passes over memory without a compiler."""
    slope = exact.sub_(total).exp_()
    slope.scatter_add_(1, to, slope.new_full(to.shape, -1.0))
    return slope.mul_(known[:, None].to(slope.dtype))


def _chunk_loss(
    logits: Tensor, targets: Tensor, gradient: Callable[..., Tensor] = _logit_gradient
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each row, in fp32, and its gradient to the logits."""
    known, to = targets >= 0, targets.clamp(min=0)[:, None]
    exact = logits.float()
    total = torch.logsumexp(exact, -1, keepdim=True)
    losses = torch.where(known, (total - exact.gather(1, to))[:, 0], 0)
    return losses, gradient(exact, total, known, to).to(logits.dtype)


_chunk_loss_in_place = functools.partial(_chunk_loss, gradient=_logit_gradient_in_place)


def _compile_chunk_loss() -> ChunkLoss:
    """Return ``_chunk_loss`` compiled once for any number of rows."""
    whole = torch.compile(_chunk_loss)

    def chunk_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for t in (logits, targets):
            torch._dynamo.maybe_mark_dynamic(t, 0)
        result: tuple[Tensor, Tensor] = whole(logits, targets)
        return result

    return chunk_loss


_chunk_losses: WeakKeyDictionary[nn.Module, ChunkLoss | None] = WeakKeyDictionary()
"""How each model's loss is computed, None: without chunks. Per model, so that models of one
process with different switches do not change each other's numbers."""


def set_chunked_loss(model: nn.Module, on: bool, compiled: bool) -> None:
    """Turn the chunked loss of a model on or off; a model without a setting has it uncompiled.

    Compiled, a chunk's logits are read twice and written once.
    """
    kernel = _compile_chunk_loss() if compiled else _chunk_loss_in_place
    _chunk_losses[model] = kernel if on else None


class SupervisedPositions(NamedTuple):
    """The N supervised positions of a padded batch, and the token that follows each.

    ``rows``, ``columns`` and ``targets`` are ``[N]``; position (row, column) predicts the target.
    A negative target is filler up to a fixed size, and is ignored.
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


def align_lanes(
    at: SupervisedPositions, lanes: int, rows: int, size: int | None = None
) -> SupervisedPositions:
    """Return the positions with the same number for each lane, ``size`` or that of the fullest.

    An output layer with trained tensors multiplies each lane's positions by the lane's own matrix,
    so they must divide evenly. ``rows`` is the number of rows of one lane.
    """
    known = at.targets >= 0
    lane = at.rows[known] // rows
    counts = torch.bincount(lane, minlength=lanes)
    size = size or int(counts.max())
    first = torch.cumsum(counts, 0) - counts
    place = lane * size + torch.arange(len(lane)) - first[lane]
    aligned = SupervisedPositions(
        torch.arange(lanes).repeat_interleave(size) * rows,  # filler belongs to a row of its lane
        torch.zeros(lanes * size, dtype=torch.long),
        torch.full((lanes * size,), IGNORE),
    )
    for into, values in zip(aligned, at, strict=True):
        into[place] = values[known]
    return aligned


def token_losses(model: nn.Module, inputs: dict[str, Tensor], at: SupervisedPositions) -> Tensor:
    """Return the cross-entropy ``[N]`` at the supervised positions, in nats and fp32."""
    chunk_loss = _chunk_losses.get(model, _chunk_loss_in_place)
    if chunk_loss is None:
        return cross_entropy(supervised_logits(model, inputs, at), at.targets)
    states, head = states_and_output_layer(model, inputs, at)
    if head is None:
        return cross_entropy(states, at.targets)
    return _linear_cross_entropy(states, head.weight, head.bias, at.targets, chunk_loss)


def states_and_output_layer(
    model: nn.Module, inputs: dict[str, Tensor], at: SupervisedPositions
) -> tuple[Tensor, nn.Linear | None]:
    """Return the output layer's input ``[N, D]`` at the supervised positions, and the layer.

    Returns the logits ``[N, V]`` and None if they are more than a frozen layer's output.
    """
    head = output_layer(model)
    if can_fuse(model, head):
        states = _states_before_output(model, head, inputs, at)
        if states is not None:
            return states, head
    return supervised_logits(model, inputs, at), None


_keeps_output: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model's logits were seen to be the output of its last layer, and no more."""


def _states_before_output(
    model: nn.Module, head: Any, inputs: dict[str, Tensor], at: SupervisedPositions
) -> Tensor | None:
    """Return the output layer's input ``[N, D]``; None if the model changes the layer's output.

    The first pass finds out: it then leaves the random generators as they were, for the pass that
    is run in its place.
    """
    known = _keeps_output.get(model)
    if known is False:
        return None
    draws = ActivePass.random
    calls = 0 if draws is None else draws.calls
    seen: list[tuple[Tensor, int]] = []

    def remember(states: Tensor) -> Tensor:
        seen.append((states, states._version))
        return states

    with torch.random.fork_rng(enabled=known is None), _replace_forward(head, remember):
        logits = supervised_logits(model, inputs, at)
    if known is None:
        # a new tensor is a part or a result of the output, a new version was written to
        known = [(id(t), version) for t, version in seen] == [(id(logits), logits._version)]
        _keeps_output[model] = known
        if not known and draws is not None:
            draws.return_to(calls)
    return logits if known else None


def output_layer(model: Any) -> Any:
    """Return the module that turns hidden states into logits."""
    return model.get_output_embeddings()


def can_fuse(model: nn.Module, head: Any) -> bool:
    """Return whether the logits are a frozen linear layer of the hidden states, and no more."""
    config: Any = getattr(model, "config", None)
    configs = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]
    return (
        type(head) is nn.Linear
        and not any(p.requires_grad for p in head.parameters())
        and not any(getattr(c, key, None) for c in configs for key in _LOGIT_TRANSFORMS)
    )


def supervised_logits(
    model: nn.Module, inputs: dict[str, Tensor], at: SupervisedPositions
) -> Tensor:
    """Return the ``[N, V]`` logits at the supervised positions.

    A pre-hook on the output layer selects them from its input, so any wrapper around the model
    (PEFT's included) works unmodified. Prompt methods prepend virtual tokens, so positions count
    from the end of the sequence.
    """
    length = inputs["input_ids"].shape[1]

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        states = args[0]
        first = states.shape[1] - length
        # index_select, not advanced indexing: the gradient of the latter sorts its indices
        place = at.rows * states.shape[1] + at.columns + first
        return (states.flatten(0, 1).index_select(0, place),)

    handle = output_layer(model).register_forward_pre_hook(pick)
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
    """Replace a module's forward on the instance for the length of the block."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and cross-entropy in chunks of positions; saves one gradient per position."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        rows = max(1, CHUNK_LOGITS[hidden.device.type] // len(weight))
        for start in range(0, len(hidden), rows):
            part, to = hidden[start : start + rows], targets[start : start + rows]
            logits = functional.linear(part.to(weight.dtype), weight, bias)
            losses[start : start + rows], slope = chunk_loss(logits, to)
            if gradient is not None:
                gradient[start : start + rows] = slope @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


_linear_cross_entropy: Callable[..., Tensor] = _LinearCrossEntropy.apply
