"""Multitask prompt tuning and Poly: rows without a task id belong to task 0.

``peft/tuners/multitask_prompt_tuning/model.py`` (``forward``) and ``peft/tuners/poly/router.py``
(``PolyRouter.forward``) raise without ``task_ids``; the router also reads the largest id back from
the device in every layer, which neither ``vmap`` nor a CUDA graph supports. A study has one task.
The router's noise, one draw per row, is drawn by key, so that it belongs to the trial; the examples
of a packed row would share one draw. Rows with task ids use PEFT's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    logits = self.module_logits[:1].view(1, self.n_splits, self.n_skills)
    logits = logits.expand(len(input_ids), -1, -1)
    if self.training and self.keyed is not None:
        # relaxed Bernoulli at temperature 1: the sigmoid of logits plus logistic noise
        uniform = ((self.keyed.bits(logits.shape) >> 8).float() + 2.0**23 + 0.5) * 2.0**-24
        logits = logits + torch.log(uniform) - torch.log1p(-uniform)
    weights = torch.sigmoid(logits)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-12)


def poly_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run Poly's layer; treat a pooler's input, one vector per row, as rows of one token."""
    if x.dim() != 2:
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    wide: Tensor = self.original_class.forward(self, x[:, None], *args, **kwargs)
    return wide[:, 0]


_ROUTER = "peft.tuners.poly.router.PolyRouter"
PATCHES = {
    "peft.tuners.multitask_prompt_tuning.model.MultitaskPromptEmbedding.forward": multitask_prompt,
    "peft.tuners.poly.layer.Linear.forward": poly_forward,
    f"{_ROUTER}.forward": route_to_task,
    f"{_ROUTER}.keyed": None,
    f"{_ROUTER}.sees_padding": True,
}
