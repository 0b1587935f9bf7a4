"""Last-token pooling for decoders that classify: the output layer sees one state per item.

transformers looks for the last token that is not padding in ``input_ids``. A method that passes
embeddings instead (prompt tuning) has no ``input_ids``, and transformers pools padding. Here the
position is known from the batch, so such methods are pooled correctly too, and the output layer
runs on one state per item.

Tensor axes: B = items, T = tokens, D = model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

LAST_TOKEN_HEAD = "score"
"""Name of the output layer in transformers' models that pool the last token, and only there."""


def last_token_positions(tokens: Sequence[Sequence[int]], pad_id: int) -> list[int]:
    """Return the position of each item's last token that is not ``pad_id``; 0 if there is none.

    The same rule as in transformers, so that a saved model predicts the same without bakeoff.
    """
    return [max((i for i, t in enumerate(item) if t != pad_id), default=0) for item in tokens]


@contextlib.contextmanager
def pool_last_token(model: nn.Module, positions: Tensor, length: int) -> Iterator[None]:
    """Run the output layer on the state at each item's position; return its logits everywhere.

    ``positions`` is ``[B]``; ``length`` is that of the padded batch, which virtual tokens precede.
    Whatever position the model then pools has the right logits. A model without such a layer (an
    encoder, which has its own pooler) is not changed.
    """
    head: nn.Module | None = getattr(model, LAST_TOKEN_HEAD, None)
    if head is None:
        yield
        return
    seen: list[int] = []

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        seen.append(states.shape[1])
        at = (positions + states.shape[1] - length)[:, None, None]
        return states.gather(1, at.expand(-1, 1, states.shape[2])), *args[1:]

    def spread(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        return logits.expand(-1, seen.pop(), -1)

    handles = head.register_forward_pre_hook(pick), head.register_forward_hook(spread)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
