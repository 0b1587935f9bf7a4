"""Where two greedy completions first differ, and whether rounding explains it.

Two correct ways to compute the same model round differently. Where the two most likely tokens are
within rounding of each other they may choose different ones, and the completions diverge from
there. So only the first difference of a row is informative: the row up to that point is run through
the model again, by itself and without padding or a cache, and the gap between the logits of the two
tokens is measured.

Tensor axes: V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bakeoff.engine.generation.generate import GenerationRequest

ROUNDING = {"fp32": 1e-4, "bf16": 2**-5}
"""A gap up to this share of the largest logit is a tie.

bf16 has 8 significant bits: adjacent logits differ by 2^-8 of their size, and 30 layers in bf16
accumulate an error of a few such steps.
"""


class TokenDifference(NamedTuple):
    """The first position where the two completions of a row differ.

    ``gap`` is the difference of the two tokens' logits as a share of the largest logit.
    """

    row: int
    place: int
    gap: float


@torch.no_grad()
def first_differences(
    model: Any,
    request: GenerationRequest,
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
) -> Iterator[TokenDifference]:
    """Yield the first difference of every row that has one."""
    for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if list(one) == list(other):
            continue
        pairs = zip(one, other, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
        if place == min(len(one), len(other)):  # one continues where the other has ended
            yield TokenDifference(row, place, float("inf"))
            continue
        logits = _next_token_logits(model, [*request.prompts[row], *one[:place]])
        gap = (logits[one[place]] - logits[other[place]]).abs() / logits.abs().max()
        yield TokenDifference(row, place, float(gap))


def _next_token_logits(model: Any, tokens: Sequence[int]) -> Tensor:
    """Return the logits of the token after these, ``[V]``, in fp32."""
    device = next(model.parameters()).device
    ids = torch.tensor([list(tokens)], device=device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[0, -1].float()
