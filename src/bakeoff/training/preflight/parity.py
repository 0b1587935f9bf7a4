"""The two-lane parity probe: which accelerators a method can use on this base, found out by trying.

Called by ``preflight`` once a method, before any trial. One step of two trials (other seeds, other
rates) on the plain path (padded batches, transformers' own attention and loss, the trials one by
one) is the truth; each accelerator must give the same losses and gradients. What does not stays
off, with its reason, and the trials run without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.core.errors import first_line
from bakeoff.core.trial import LEARNING_RATE, Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.device import free_memory
from bakeoff.engine.lanes.lanes import FrozenPartsDiffer
from bakeoff.engine.loop import step_with_retry
from bakeoff.training.generation import generation_mismatch
from bakeoff.training.setup import TrainingSetup, build_setup, make_task

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Largest relative difference of a lane's gradient (and loss): rounding, with room. A wrong
gradient is off by its own size."""
PERTURBATION = 0.1
"""How far trained tensors are moved before answers are compared: in their own spread."""
ORDER = (
    "lanes", "loss", "packing", "lean_inputs", "checkpointing", "micro_tokens", "compile", "graphs",
)  # fmt: skip
"""In which order accelerators are tried one by one: what others rest on comes first."""


class ParityResult(NamedTuple):
    """The switches that hold for a method on this base, and why others are off."""

    switches: Switches
    reasons: dict[str, str]


class StepGradients(NamedTuple):
    """One step of two lanes: losses ``[2]`` and gradients ``[2, P]``."""

    losses: Tensor
    gradients: Tensor


def probe_accelerators(trial: Trial, base_path: str, data: Path, wished: Switches) -> ParityResult:
    """Return ``wished``, less what does not agree with the plain path."""
    found = _probe_training(trial, base_path, data, dataclasses.replace(wished, generation=False))
    if not wished.generation or not make_task(trial.conditions).generates:
        return found
    why = _generation_mismatch(trial, base_path, data, found.switches)
    if why is not None:
        return found._replace(reasons={**found.reasons, "generation": why})
    return found._replace(switches=dataclasses.replace(found.switches, generation=True))


def _probe_training(trial: Trial, base_path: str, data: Path, wished: Switches) -> ParityResult:
    pair = _trial_pair(trial)
    truth = _run_step(pair, base_path, data, Switches.all_off())
    failed = _step_mismatch(pair, base_path, data, wished, truth)
    if failed is None:
        return ParityResult(wished, {})
    held, reasons = Switches.all_off(), {}
    for name in ORDER:
        if not getattr(wished, name):
            continue
        tried = dataclasses.replace(held, **{name: getattr(wished, name)})
        failed = _step_mismatch(pair, base_path, data, tried, truth)
        if failed is None:
            held = tried
        else:
            reasons[name] = failed
    return ParityResult(held, reasons)


def _trial_pair(trial: Trial) -> tuple[Trial, Trial]:
    faster = {**trial.setting, LEARNING_RATE: 2 * trial.learning_rate}
    return trial, dataclasses.replace(trial, setting=faster, seed=trial.seed + 1)


def _step_mismatch(
    pair: Sequence[Trial], base_path: str, data: Path, tried: Switches, truth: StepGradients
) -> str | None:
    """Return why a step under ``tried`` is not the plain path's, or None where it is."""
    try:
        found = _run_step(pair, base_path, data, tried)
    except FrozenPartsDiffer as error:
        return str(error)
    except Exception as error:  # whatever a library raises here, the plain path is there
        return first_line(error)
    limit = TOLERANCE[pair[0].conditions.precision]
    off = (found.gradients - truth.gradients).norm(dim=1) / truth.gradients.norm(dim=1)
    worst = float(torch.cat([off, (found.losses / truth.losses - 1).abs()]).max())
    if worst <= limit:
        return None
    return f"losses or gradients differ from the same trials alone by {worst:.2g} (relative)"


@torch.no_grad()
def _generation_mismatch(
    trial: Trial, base_path: str, data: Path, switches: Switches
) -> str | None:
    """Return why answers are to be generated plainly, None where fast ones are the same.

    The trained tensors are moved off their start, where many methods change nothing.
    """
    setup = build_setup([trial], base_path, data, switches)
    torch.manual_seed(0)
    for name in setup.lanes.stack.names:
        held = setup.lanes.stack.tensor(name)
        spread = held.std() if held.numel() > 1 else torch.zeros_like(held.sum())
        held.add_(
            torch.randn_like(held) * torch.where(spread > 0, PERTURBATION * spread, PERTURBATION**2)
        )
    setup.model.eval()
    asked = setup.task.prompts(setup.tokenizer, setup.rows("validation"))
    try:
        return generation_mismatch(setup.model, asked, trial.conditions, switches.graphs)
    finally:
        del setup
        free_memory()


def _run_step(
    pair: Sequence[Trial], base_path: str, data: Path, switches: Switches
) -> StepGradients:
    setup = build_setup(pair, base_path, data, switches)
    try:
        return one_step(setup)
    finally:
        del setup
        free_memory()


def one_step(setup: TrainingSetup) -> StepGradients:
    """Return the losses and gradients of a setup's first step, dropout off: it only adds noise."""
    for module in setup.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = getattr(setup.model, "config", None)
    if getattr(config, "attention_dropout", None):
        config.attention_dropout = 0.0  # type: ignore[union-attr]
    examples = setup.examples("train")
    stepper = setup.stepper()
    setup.model.train()
    batches = setup.batch_builder.training_steps(examples, [t.seed for t in setup.trials])
    setup.batch_builder.may_recompute = (
        True  # a step that does not fit whole is taken in parts, the plain one too
    )
    losses = step_with_retry(stepper, 0, next(batches), setup.batch_builder.split_last_step)
    return StepGradients(losses.float().clone(), setup.lanes.stack.gradients.clone())
