"""Trials on the tiny models, trained step by step, for contract tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bakeoff.core.trial import MethodEntry, Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import StepBatch
from bakeoff.methods import registry
from bakeoff.testing.tiny import write_splits
from bakeoff.training import setup
from bakeoff.training.preflight.capabilities.accelerators import tiny_conditions

LABELS = ["lights", "music", "timer"]
OPTIONS: dict[str, dict[str, Any]] = {
    "classify": {
        "columns": {"text": "text", "label": "label"},
        "max_length": 32,
        "max_new_tokens": None,
        "labels": LABELS,
    },
    "sft": {
        "columns": {"prompt": "Command : {text} JSON", "completion": "{json}"},
        "max_length": 64,
        "max_new_tokens": 4,
    },
}
CONDITIONS = dataclasses.replace(
    tiny_conditions("classify"),
    base="b",
    task_options=OPTIONS["classify"],
    steps=30,
    batch_size=8,
    evaluation_batch_size=8,
    warmup=0.1,
    decay=0.3,
)


def make_trial(
    method: str | MethodEntry,
    task: str,
    *,
    seed: int = 0,
    phase: str = "final",
    rate: float = 1e-2,
    **changes: Any,
) -> Trial:
    """Return a trial of a method (of the catalog, if a name); ``changes`` are to the conditions."""
    conditions = dataclasses.replace(CONDITIONS, task=task, task_options=OPTIONS[task], **changes)
    entry = registry.load(method, Path()) if isinstance(method, str) else method
    return Trial(entry, {"learning_rate": rate}, seed, phase, conditions)


def build_tiny_setup(
    trials: Trial | Sequence[Trial], base: Path, folder: Path, switches: Switches | None = None
) -> setup.TrainingSetup:
    """Set up trials on ``base`` with the tiny rows as data; without ``switches`` all are off."""
    group = [trials] if isinstance(trials, Trial) else list(trials)
    data = write_splits(folder / "data")
    setup.prepare_process(group[0].conditions)
    return setup.build_setup(group, str(base), data, switches)


class StepTrace(NamedTuple):
    """Losses ``[steps, K]``, and gradients of the first step ``[K, P]``; K trials, P parameters."""

    losses: torch.Tensor
    gradients: torch.Tensor


def batches(at: setup.TrainingSetup, start: int = 0) -> Iterator[StepBatch]:
    """Yield the training batches of the trials from step ``start``."""
    return at.batch_builder.training_steps(at.examples("train"), [t.seed for t in at.trials], start)


def train_steps(at: setup.TrainingSetup, count: int) -> StepTrace:
    """Train the first ``count`` steps."""
    stepper, source = at.stepper(), batches(at)
    at.model.train()
    losses = [stepper.step(0, next(source)).clone()]
    gradients = at.lanes.stack.gradients.clone()
    losses += [stepper.step(i, next(source)).clone() for i in range(1, count)]
    return StepTrace(torch.stack(losses), gradients)


def step_losses(at: setup.TrainingSetup, count: int) -> torch.Tensor:
    """Train the first steps and return their losses ``[count, K]``."""
    return train_steps(at, count).losses


def single_trial_losses(at: setup.TrainingSetup, count: int) -> list[float]:
    """Train the first steps of a single trial and return their losses."""
    losses: list[float] = step_losses(at, count)[:, 0].tolist()
    return losses


def disable_dropout(at: setup.TrainingSetup) -> setup.TrainingSetup:
    """Switch dropout off, to compare with code that draws random numbers differently."""
    for module in at.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return at
