"""Loss where the labels are: hidden states of supervised tokens only reach the output layer.

Used by tasks that train on tokens. ``[tokens, vocabulary]`` logits of a whole batch never exist,
and a method's own additions to ``outputs.loss`` (AdaLoRA's penalty, say) stay out of the
comparison, because no labels are ever handed to the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Supervised(NamedTuple):
    """Where a padded batch is supervised: N positions and the token that follows each.

    ``rows``, ``columns`` and ``targets`` are ``[N]``; position (row, column) predicts the target.
    """

    rows: Tensor
    columns: Tensor
    targets: Tensor


def supervised_positions(labels_BT: Tensor, ignore: int = -100) -> Supervised:
    """Return the positions whose next token is labelled."""
    rows, columns = torch.nonzero(labels_BT[:, 1:] != ignore, as_tuple=True)
    return Supervised(rows, columns, labels_BT[rows, columns + 1])


def supervised_logits(model: nn.Module, inputs: dict[str, Tensor], at: Supervised) -> Tensor:
    """Return the ``[N, vocabulary]`` logits at the supervised positions.

    A pre-hook on the output layer picks them out of its input, so any wrapper around the model
    (PEFT's included) works unmodified. Prompt methods put virtual tokens in front: positions count
    from the end of the sequence.
    """
    length = inputs["input_ids"].shape[1]

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][:, -length:][at.rows, at.columns],)

    output_layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    handle = output_layer.register_forward_pre_hook(pick)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the per-position cross-entropy ``[N]`` in nats, computed in fp32."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")
