"""How long an example takes once a method is trained: its adapter apart, and merged.

Called by the cost probe (``preflight``) as the last thing in its process: merging changes the base.
What is timed is transformers' and PEFT's own forward pass over one validation example of median
length, without any of our accelerators: what a server without tricks of its own would pay.
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
    """Median milliseconds of a forward pass over one example; None: it cannot be had."""

    apart: float | None
    merged: float | None


def measure_latency(trial: Trial, base_path: str, data: Path) -> Latency:
    """Time one example through a method's model, then through the one it merges into."""
    setup = build_setup([trial], base_path, data, Switches.all_off())
    setup.model.eval()
    run = _median_example_forward(setup)
    apart = profiling.measure_steps(
        lambda _: run(setup.model), trial.conditions.device
    ).milliseconds
    if setup.hook.saved_as != "adapter":
        return Latency(apart, apart)  # trained in the base's own tensors: nothing to merge
    merged = _merge(setup.model)
    if merged is None:
        return Latency(apart, None)
    set_chunked_loss(merged, on=False, compiled=False)  # as in the unmerged model
    once = profiling.measure_steps(lambda _: run(merged), trial.conditions.device)
    return Latency(apart, once.milliseconds)


def _median_example_forward(setup: TrainingSetup) -> Callable[[nn.Module], object]:
    """Return what puts the example of median length through a model."""
    c = setup.conditions
    examples = sorted(setup.examples("validation"), key=lambda e: len(e.tokens))
    step = next(setup.batch_builder.evaluation_steps([examples[len(examples) // 2]], 1)).to(
        c.device
    )
    (one,) = step.passes
    setup.lanes.run_lanes(one.first, one.width, one.batch.rows // one.width)

    @torch.no_grad()
    def run(model: nn.Module) -> object:
        with autocast(c.device, c.precision), use_layout(one.layout, setup.lanes.random):
            return setup.task.item_losses(model, one.batch)

    return run


def _merge(model: nn.Module) -> nn.Module | None:
    """Return the model with its adapter merged into the base; None where PEFT does not do that."""
    merge = getattr(getattr(model, "base_model", None), "merge_and_unload", None)
    if merge is None:
        return None
    try:
        found: nn.Module = merge().eval()
    except Exception:  # whatever PEFT raises: `bakeoff methods` says what it was
        return None
    return found
