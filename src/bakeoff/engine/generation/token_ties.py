"""Where two greedy answers differ, and whether rounding explains it.

Used by the parity probe and by the benchmark. Two right ways to compute the same model round
differently, and where the two likeliest tokens are within rounding of each other they may choose
differently; from there on the answers go apart. So only the first difference of a row says
something: the row up to there goes through the model once more, alone, without padding or a cache,
and the gap between the logits of the two tokens tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bakeoff.engine.generation.generate import GenerationRequest

ROUNDING = {"fp32": 1e-4, "bf16": 2**-5}
"""A gap up to this share of the largest logit is a tie.

bf16 has 8 bits: its logits are 2^-8 of themselves apart, and 30 layers in it leave an error of a
few such steps.
"""


class TokenDifference(NamedTuple):
    """The first place where a row's two answers differ.

    ``gap`` is how far apart the two tokens' logits are, as a share of the largest logit.
    """

    row: int
    place: int
    gap: float


@torch.no_grad()
def first_differences(
    model: Any,
    asked: GenerationRequest,
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
) -> Iterator[TokenDifference]:
    """Yield the first difference of every row that has one."""
    for row, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if list(own) == list(other):
            continue
        shared = zip(own, other, strict=False)
        place = next((i for i, (a, b) in enumerate(shared) if a != b), min(len(own), len(other)))
        if place == min(len(own), len(other)):  # one goes on where the other has ended
            yield TokenDifference(row, place, float("inf"))
            continue
        logits = _next_token_logits(model, [*asked.prompts[row], *own[:place]])
        gap = (logits[own[place]] - logits[other[place]]).abs() / logits.abs().max()
        yield TokenDifference(row, place, float(gap))


def _next_token_logits(model: Any, tokens: Sequence[int]) -> Tensor:
    """Return the logits behind these tokens, ``[vocabulary]``, in fp32."""
    device = next(model.parameters()).device
    ids = torch.tensor([list(tokens)], device=device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[0, -1].float()
