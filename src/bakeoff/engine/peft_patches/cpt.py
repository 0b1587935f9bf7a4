"""CPT: the projection of the trained tokens is written in place, without a branch.

``peft/tuners/cpt/model.py:81`` (``CPTEmbedding.forward``) assigns the projected values to
``weight.data``: functorch forbids it, and a weight that is a view of a larger tensor would be
detached from it, so that the optimizer would train what the model no longer reads.
``get_projection`` (``model.py:143``) branches on ``torch.any(norm > 0)`` and writes by a boolean
mask. Fix upstream: ``weight.copy_`` of a ``torch.where``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def token_radii(
    kinds: tuple[int, ...], width: int, of_format: float, of_input: float, device: torch.device
) -> Tensor:
    """Return the radius within which each token may move.

    Templates and labels have one radius, inputs another.

    A token's kind (1 template, 2 input, 3 label template, 4 label) is its mask modulo 4.
    """
    scale = torch.sqrt(torch.Tensor([width / 2048]))
    by_kind = {1: of_format * scale, 3: of_format * scale, 2: of_input * scale}
    least = torch.full((1,), 1e-10)
    by_token = [by_kind.get(kind % 4, least) if kind > 0 else least for kind in kinds]
    return torch.cat(by_token).to(device)


def get_projection(self: Any) -> Tensor:
    """Return the trained tokens, clipped to their radius."""
    with torch.no_grad():
        moved: Tensor = self.delta_embedding.weight
        c = self.config
        radius = token_radii(
            tuple(c.cpt_tokens_type_mask), c.token_dim, c.opt_projection_format_epsilon,
            c.opt_projection_epsilon, moved.device,
        )  # fmt: skip
        norm = torch.norm(moved, p=2, dim=1)
        scale = torch.where(norm > 0, radius / torch.maximum(norm, radius), 1.0)
        return moved * scale.view(-1, 1)


def forward(self: Any, indices: Tensor) -> Tensor:
    """Project the trained tokens in place; return the context's embeddings plus them."""
    with torch.no_grad():
        context = self.embedding(indices)
        self.delta_embedding.weight.copy_(self.get_projection())
    embeddings: Tensor = context + self.delta_embedding(indices)
    return embeddings


_OWNER = "peft.tuners.cpt.model.CPTEmbedding"
PATCHES = {f"{_OWNER}.get_projection": get_projection, f"{_OWNER}.forward": forward}
