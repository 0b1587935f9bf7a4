"""Multitask prompt tuning and Poly: rows without a task id belong to task 0.

``peft/tuners/multitask_prompt_tuning/model.py`` (``forward``) and ``peft/tuners/poly/router.py``
(``PolyRouter.forward``) raise without ``task_ids``; the router also reads the largest id back from
the device in every layer, which neither ``vmap`` nor a CUDA graph supports. A study has one task.
The router's noise, one draw per example, is drawn by key, so that it belongs to the trial. In a
packed row each token is multiplied by all skills, and weighted by its own example's. Rows with task
ids use PEFT's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bakeoff.engine.packing.tokens import padded_places, padded_shape


def multitask_prompt(self: Any, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
    """Return the shared prompt times the rank-one matrix of task 0."""
    if task_ids is not None:
        own: Tensor = self.original_class.forward(self, indices, task_ids)
        return own
    of_task: Tensor = self.prefix_task_cols[:1] @ self.prefix_task_rows[:1]
    prompt: Tensor = self.embedding(indices) * of_task
    return prompt


def route_to_task(self: Any, task_ids: Tensor | None, input_ids: Tensor) -> Tensor:
    """Return task 0's weights of the skills for each row, ``[B, splits, skills]``."""
    if task_ids is not None:
        own: Tensor = self.original_class.forward(self, task_ids, input_ids)
        return own
    return _route(self, len(input_ids))


def _route(router: Any, rows: int) -> Tensor:
    """Return task 0's weights of the skills for so many examples, ``[rows, splits, skills]``."""
    logits = router.module_logits[:1].view(1, router.n_splits, router.n_skills)
    logits = logits.expand(rows, -1, -1)
    if router.training and router.keyed is not None:
        # relaxed Bernoulli at temperature 1: the sigmoid of logits plus logistic noise
        uniform = ((router.keyed.bits(logits.shape) >> 8).float() + 2.0**23 + 0.5) * 2.0**-24
        logits = logits + torch.log(uniform) - torch.log1p(-uniform)
    weights = torch.sigmoid(logits)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-12)


def poly_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run Poly's layer; treat a pooler's input, one vector per row, as rows of one token."""
    places = None if self.disable_adapters else padded_places(x)
    if places is not None:
        return _packed_forward(self, x, places, *args, **kwargs)
    if x.dim() != 2:
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    wide: Tensor = self.original_class.forward(self, x[:, None], *args, **kwargs)
    return wide[:, 0]


def _packed_forward(self: Any, x: Tensor, places: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run Poly's layer on a packed row ``[1, T, D]``; ``places`` are those of padded tokens."""
    dtype = x.dtype
    result: Tensor = self.base_layer(x, *args, **kwargs)
    rows, length = padded_shape()
    for adapter in self.active_adapters:
        if adapter not in self.poly_lora_A:
            continue
        down, up = self.poly_lora_A[adapter], self.poly_lora_B[adapter]
        splits, skills, _, rank = down.shape
        by_example = _route(self.poly_router[adapter], rows)
        weights = by_example.index_select(0, places // length)  # [T, splits, skills]
        tokens = x[0].to(down.dtype).view(len(places), splits, -1)
        hidden = torch.einsum("tqd,qsdr->tqsr", tokens, down) * weights[..., None]
        hidden = hidden.sum((1, 2))  # [T, rank]
        spread = (weights[..., None] * hidden[:, None, None]).flatten(2)
        delta = torch.einsum("tqn,qnd->tqd", spread, up.reshape(splits, skills * rank, -1))
        result = result + delta.flatten(1)[None] / self.r[adapter]
    return result.to(dtype)


_ROUTER = "peft.tuners.poly.router.PolyRouter"
PATCHES = {
    "peft.tuners.multitask_prompt_tuning.model.MultitaskPromptEmbedding.forward": multitask_prompt,
    "peft.tuners.poly.layer.Linear.forward": poly_forward,
    f"{_ROUTER}.forward": route_to_task,
    f"{_ROUTER}.keyed": None,
}
