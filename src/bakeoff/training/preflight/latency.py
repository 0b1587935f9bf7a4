"""Inference time per example of a method, with its adapter unmerged and merged.

The forward pass of transformers and PEFT is timed on one validation example of median length,
without the engine's accelerators. Merging changes the base, so nothing may use it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from bakeoff.core.trial import Trial
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.device import autocast
from bakeoff.engine.loss import set_chunked_loss
from bakeoff.engine.packing.attention import use_layout
from bakeoff.training.setup import TrainingSetup, build_setup


class Latency(NamedTuple):
    """Median milliseconds of a forward pass over one example; None if it cannot be measured."""

    unmerged_ms: float | None
    merged_ms: float | None


def measure_latency(trial: Trial, base_path: str, data: Path) -> Latency:
    """Time one example with the adapter unmerged, then with it merged into the base."""
    setup = build_setup([trial], base_path, data, Switches.all_off())
    setup.model.eval()
    forward = _median_example_forward(setup)
    unmerged = profiling.measure_steps(
        lambda _: forward(setup.model), trial.conditions.device
    ).milliseconds
    if setup.hook.saved_as != "adapter":
        return Latency(unmerged, unmerged)  # the base's own tensors are trained: nothing to merge
    merged = _merge(setup.model)
    if merged is None:
        return Latency(unmerged, None)
    set_chunked_loss(merged, on=False, compiled=False)  # as in the unmerged model
    cost = profiling.measure_steps(lambda _: forward(merged), trial.conditions.device)
    return Latency(unmerged, cost.milliseconds)


def _median_example_forward(setup: TrainingSetup) -> Callable[[nn.Module], object]:
    """Return a function that runs a model on the example of median length."""
    c = setup.conditions
    examples = sorted(setup.examples("validation"), key=lambda e: len(e.tokens))
    step = next(setup.batch_builder.evaluation_steps([examples[len(examples) // 2]], 1)).to(
        c.device
    )
    (one,) = step.passes
    setup.lanes.run_lanes(one.first, one.width, one.batch.rows // one.width)

    @torch.no_grad()
    def forward(model: nn.Module) -> object:
        with autocast(c.device, c.precision), use_layout(one.layout, setup.lanes.random):
            return setup.task.item_losses(model, one.batch)

    return forward


def _merge(model: nn.Module) -> nn.Module | None:
    """Return the model with its adapter merged into the base; None if PEFT cannot merge it."""
    merge = getattr(getattr(model, "base_model", None), "merge_and_unload", None)
    if merge is None:
        return None
    try:
        merged: nn.Module = merge().eval()
    except Exception:  # PEFT raises many kinds; `bakeoff methods` shows the reason
        return None
    return merged
