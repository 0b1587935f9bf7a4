"""The optimizer and the learning-rate schedule: the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """Return the factor on the peak learning rate at ``step`` of ``steps`` (counted from 0).

    Warm-up, stable, decay (WSD, arXiv 2404.06395): a linear rise over the first ``warmup`` share of
    the steps, a plateau, a linear fall to 0 over the last ``decay`` share. A trial stopped on the
    plateau and one that goes on have shared the same steps, which a cosine would not give.
    """
    rising = warmup * steps
    falling = decay * steps
    up = (step + 1) / rising if rising > 0 else 1.0
    down = (steps - step) / falling if falling > 0 else 1.0
    return max(0.0, min(1.0, up, down))


class Group(NamedTuple):
    """Parameters that share a peak learning rate."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


def adamw(groups: Sequence[Group], weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over fp32 parameters, fused: one kernel a step instead of many small ones.

    Each group keeps its peak rate under ``peak``, which the schedule scales.
    """
    settings = [
        {"params": list(g.parameters), "lr": g.learning_rate, "peak": g.learning_rate}
        for g in groups
    ]
    return torch.optim.AdamW(settings, weight_decay=weight_decay, fused=True)
