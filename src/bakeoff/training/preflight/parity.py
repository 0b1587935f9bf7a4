"""The parity probe: which accelerators give a method the same losses and gradients on this base.

The reference is one step of two trials with different seeds and learning rates on the plain path:
padded batches, transformers' own attention and loss, one trial after the other. The same set-up
then takes the step with all requested accelerators. An accelerator whose step differs stays off,
with its reason, and the trials run without it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.core import files
from bakeoff.core.trial import LEARNING_RATE, Trial
from bakeoff.engine.accelerators import Switches, explain_failure
from bakeoff.engine.batching import BatchBuilder
from bakeoff.engine.device import disable_input_casting, free_memory
from bakeoff.engine.loop import step_with_retry
from bakeoff.methods.hook import Hook, overrides
from bakeoff.training.generation import GenerationMismatch, probe_generation
from bakeoff.training.setup import TrainingSetup, build_setup, make_task

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Largest relative difference of a lane's gradient and loss: more than rounding errors, and much
less than the error of a wrong gradient, which is about 1."""
PERTURBATION = 0.1
"""How far trained tensors are moved before answers are compared, in their standard deviations."""
ORDER = (
    "lanes", "loss", "packing", "lean_inputs", "fused", "checkpointing", "micro_tokens", "compile",
    "graphs",
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
    training = dataclasses.replace(requested, generation=False)
    result, setup = _probe_training(trial, base_path, data, training)
    if not requested.generation or not make_task(trial.conditions).generates:
        return result
    in_lanes = result.switches.lanes
    if setup is None:
        group = _trial_pair(trial) if in_lanes else [trial]
        setup = build_setup(group, base_path, data, result.switches)
    mismatch = _generation_mismatch(setup, in_lanes)
    del setup
    free_memory()
    switches, reasons = result.switches, dict(result.reasons)
    if mismatch.generation is None:
        switches = dataclasses.replace(switches, generation=True)
    else:
        reasons["generation"] = mismatch.generation
    why = mismatch.generation or mismatch.lanes if in_lanes else reasons.get("lanes")
    if why is not None:
        reasons["lane_generation"] = why
    elif in_lanes:
        switches = dataclasses.replace(switches, lane_generation=True)
    return ParityResult(switches, reasons)


def _probe_training(
    trial: Trial, base_path: str, data: Path, requested: Switches
) -> tuple[ParityResult, TrainingSetup | None]:
    """Return the accelerators with which a step is the same, and the probe's set-up with them.

    The set-up has the initial tensors of both trials; None if it does not have these accelerators.
    """
    pair = _trial_pair(trial)
    setup = build_setup(pair, base_path, data, Switches.all_off())
    initial = setup.lanes.stack.values.cpu().clone()
    reference = one_step(setup)
    # all at once first: for most methods every accelerator works, and one step is enough
    if _steps_change_only_tensors(setup.hook):
        again = functools.partial(_repeat_step, setup, initial, requested)
        mismatch = _step_mismatch(pair, again, reference)
        if mismatch is None:
            setup.lanes.stack.values.copy_(initial)
            free_memory()
            return ParityResult(requested, {}), setup
        del again
    else:
        mismatch = _switches_mismatch(pair, base_path, data, requested, reference)
    del setup, initial
    free_memory()
    if mismatch is None:
        return ParityResult(requested, {}), None
    return _probe_one_by_one(pair, base_path, data, requested, reference), None


def _probe_one_by_one(
    pair: Sequence[Trial], base_path: str, data: Path, requested: Switches, reference: StepGradients
) -> ParityResult:
    """Return the accelerators that work, each tried with those before it on a set-up of its own."""
    working, reasons = Switches.all_off(), {}
    for name in ORDER:
        if not getattr(requested, name):
            continue
        tried = dataclasses.replace(working, **{name: getattr(requested, name)})
        mismatch = _switches_mismatch(pair, base_path, data, tried, reference)
        if mismatch is None:
            working = tried
        else:
            reasons[name] = mismatch
    return ParityResult(working, reasons)


def _steps_change_only_tensors(hook: Hook) -> bool:
    """Return whether a step changes nothing but the lanes' tensors, so that it can be repeated."""
    return not overrides(hook, "after_step", "after_lanes_step", "state", "precondition")


def _repeat_step(setup: TrainingSetup, initial: Tensor, switches: Switches) -> StepGradients:
    """Take the first step again, with accelerators, in a set-up that had none."""
    old, c = setup.batch_builder, setup.conditions
    setup.lanes.stack.values.copy_(initial)
    if switches.lean_inputs:
        disable_input_casting(setup.model)
    setup.batch_builder = BatchBuilder(
        setup.lanes, setup.task, c.batch_size, old.pad_id, c.device, switches
    )
    return one_step(setup)


def _trial_pair(trial: Trial) -> tuple[Trial, Trial]:
    """Return the trial, and a copy with another seed and learning rate."""
    faster = {**trial.setting, LEARNING_RATE: 2 * trial.learning_rate}
    return trial, dataclasses.replace(trial, setting=faster, seed=trial.seed + 1)


def _switches_mismatch(
    pair: Sequence[Trial], base_path: str, data: Path, tried: Switches, reference: StepGradients
) -> str | None:
    """Return why a step of a new set-up with the switches ``tried`` differs, None if not."""
    mismatch = _step_mismatch(
        pair, lambda: one_step(build_setup(pair, base_path, data, tried)), reference
    )
    free_memory()
    return mismatch


def _step_mismatch(
    pair: Sequence[Trial], take_step: Callable[[], StepGradients], reference: StepGradients
) -> str | None:
    """Return why a step differs from the reference, None if not."""
    try:
        step = take_step()
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
def _generation_mismatch(setup: TrainingSetup, in_lanes: bool) -> GenerationMismatch:
    """Compare fast generation with plain generation, for one lane and with ``in_lanes`` for two.

    The trained tensors are moved away from their initial values, where many methods compute the
    same as the base.
    """
    torch.manual_seed(0)
    for lane in range(2 if in_lanes else 1):
        for name in setup.lanes.stack.names:
            tensor = setup.lanes.stack.tensor(name)[lane]
            spread = tensor.std() if tensor.numel() > 1 else torch.zeros_like(tensor.sum())
            scale = torch.where(spread > 0, PERTURBATION * spread, PERTURBATION**2)
            tensor.add_(torch.randn_like(tensor) * scale)
    setup.model.eval()
    request = setup.task.prompts(setup.tokenizer, setup.rows("validation"))
    graphs = setup.batch_builder.switches.graphs
    return probe_generation(setup.lanes, request, setup.conditions, graphs, in_lanes)


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
