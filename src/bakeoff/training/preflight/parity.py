"""The parity probe: which accelerators give a method the same losses and gradients on this base.

The reference is one step of two trials with different seeds and learning rates on the plain path:
padded batches, transformers' own attention and loss, one trial after the other. An accelerator
whose step differs stays off, with its reason, and the trials run without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.core import files
from bakeoff.core.trial import LEARNING_RATE, Trial
from bakeoff.engine.accelerators import Switches, explain_failure
from bakeoff.engine.device import free_memory
from bakeoff.engine.loop import step_with_retry
from bakeoff.training.generation import generation_mismatch
from bakeoff.training.setup import TrainingSetup, build_setup, make_task

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Largest relative difference of a lane's gradient and loss: more than rounding errors, and much
less than the error of a wrong gradient, which is about 1."""
PERTURBATION = 0.1
"""How far trained tensors are moved before answers are compared, in their standard deviations."""
ORDER = (
    "lanes", "loss", "packing", "lean_inputs", "checkpointing", "micro_tokens", "compile", "graphs",
)  # fmt: skip
"""Order in which accelerators are tried one by one: an accelerator follows those it builds on."""


class ParityResult(NamedTuple):
    """The accelerators that work with a method on this base, and why others are off."""

    switches: Switches
    reasons: dict[str, str]


class StepGradients(NamedTuple):
    """The losses ``[2]`` and gradients ``[2, P]`` of one step of two lanes."""

    losses: Tensor
    gradients: Tensor


def probe_accelerators(
    trial: Trial, base_path: str, data: Path, requested: Switches
) -> ParityResult:
    """Return the requested accelerators without those that differ from the plain path."""
    result = _probe_training(
        trial, base_path, data, dataclasses.replace(requested, generation=False)
    )
    if not requested.generation or not make_task(trial.conditions).generates:
        return result
    why = _generation_mismatch(trial, base_path, data, result.switches)
    if why is not None:
        return result._replace(reasons={**result.reasons, "generation": why})
    return result._replace(switches=dataclasses.replace(result.switches, generation=True))


def _probe_training(trial: Trial, base_path: str, data: Path, requested: Switches) -> ParityResult:
    pair = _trial_pair(trial)
    reference = _run_step(pair, base_path, data, Switches.all_off())
    # all at once first: for most methods every accelerator works, and one step is enough
    mismatch = _step_mismatch(pair, base_path, data, requested, reference)
    if mismatch is None:
        return ParityResult(requested, {})
    working, reasons = Switches.all_off(), {}
    for name in ORDER:
        if not getattr(requested, name):
            continue
        tried = dataclasses.replace(working, **{name: getattr(requested, name)})
        mismatch = _step_mismatch(pair, base_path, data, tried, reference)
        if mismatch is None:
            working = tried
        else:
            reasons[name] = mismatch
    return ParityResult(working, reasons)


def _trial_pair(trial: Trial) -> tuple[Trial, Trial]:
    """Return the trial, and a copy with another seed and learning rate."""
    faster = {**trial.setting, LEARNING_RATE: 2 * trial.learning_rate}
    return trial, dataclasses.replace(trial, setting=faster, seed=trial.seed + 1)


def _step_mismatch(
    pair: Sequence[Trial], base_path: str, data: Path, tried: Switches, reference: StepGradients
) -> str | None:
    """Return why a step with the switches ``tried`` differs from the reference, None if not."""
    try:
        step = _run_step(pair, base_path, data, tried)
    except Exception as error:  # of any kind: the plain path remains
        if files.disk_full_message(error):
            raise
        return explain_failure(error)
    limit = TOLERANCE[pair[0].conditions.precision]
    off = (step.gradients - reference.gradients).norm(dim=1) / reference.gradients.norm(dim=1)
    worst = float(torch.cat([off, (step.losses / reference.losses - 1).abs()]).max())
    if worst <= limit:
        return None
    return f"losses or gradients differ from the same trials alone by {worst:.2g} (relative)"


@torch.no_grad()
def _generation_mismatch(
    trial: Trial, base_path: str, data: Path, switches: Switches
) -> str | None:
    """Return why fast generation differs from plain generation, None if it does not.

    The trained tensors are moved away from their initial values, where many methods compute the
    same as the base.
    """
    setup = build_setup([trial], base_path, data, switches)
    torch.manual_seed(0)
    for name in setup.lanes.stack.names:
        tensor = setup.lanes.stack.tensor(name)
        spread = tensor.std() if tensor.numel() > 1 else torch.zeros_like(tensor.sum())
        scale = torch.where(spread > 0, PERTURBATION * spread, PERTURBATION**2)
        tensor.add_(torch.randn_like(tensor) * scale)
    setup.model.eval()
    request = setup.task.prompts(setup.tokenizer, setup.rows("validation"))
    try:
        return generation_mismatch(setup.model, request, trial.conditions, switches.graphs)
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
    """Return the losses and gradients of the first step, without dropout, which only adds noise."""
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
    # a step that does not fit into memory is cut into passes, that of the reference too
    setup.batch_builder.may_recompute = True
    losses = step_with_retry(stepper, 0, next(batches), setup.batch_builder.split_last_step)
    return StepGradients(losses.float().clone(), setup.lanes.stack.gradients.clone())
