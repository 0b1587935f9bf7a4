"""Last-token pooling of decoders that classify: the output layer sees one state an item.

Used by tasks that classify. transformers looks for the last token that is not padding in
``input_ids``; a method that feeds embeddings instead (prompt tuning) leaves it none to look in, and
it reads padding. Here the place is known from the batch, so such methods are right, too, and the
output layer runs on one state an item.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

LAST_TOKEN_HEAD = "score"
"""What transformers calls the output layer of models that read the last token; no other's."""


def last_token_positions(tokens: Sequence[Sequence[int]], pad_id: int) -> list[int]:
    """Return the place of each item's last token that is not ``pad_id``; 0 where all are.

    As transformers finds it, so that a saved model answers the same without bakeoff.
    """
    return [max((i for i, t in enumerate(own) if t != pad_id), default=0) for own in tokens]


@contextlib.contextmanager
def pool_last_token(model: nn.Module, places: Tensor, length: int) -> Iterator[None]:
    """Give the output layer the state at each item's place ``[B]``, and every place its logits.

    ``length`` is that of the padded batch; virtual tokens stand in front of it. A model without
    such a layer (an encoder, which has a pooler of its own) is left as it is.
    """
    head: nn.Module | None = getattr(model, LAST_TOKEN_HEAD, None)
    if head is None:
        yield
        return
    seen: list[int] = []

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        seen.append(states.shape[1])
        at = (places + states.shape[1] - length)[:, None, None]
        return states.gather(1, at.expand(-1, 1, states.shape[2])), *args[1:]

    def spread(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        return logits.expand(-1, seen.pop(), -1)

    handles = head.register_forward_pre_hook(pick), head.register_forward_hook(spread)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
