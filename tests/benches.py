"""Trials on the tiny models, built and trained by hand: what engine and method tests share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import rows, write_jsonl

from bakeoff import assemble
from bakeoff.engine.switches import Switches
from bakeoff.methods import registry
from bakeoff.trial import Conditions, Trial

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
CONDITIONS = Conditions(
    base="b",
    revision=None,
    task="classify",
    task_options=OPTIONS["classify"],
    metric="accuracy",
    data={},
    steps=30,
    batch_size=8,
    evaluation_batch_size=8,
    warmup=0.1,
    decay=0.3,
    weight_decay=0.0,
    clip=1.0,
    head_learning_rate=None,
    validations=1,
    device="cpu",
    precision="fp32",
    threads=1,
)


def make_trial(
    method: str,
    task: str,
    *,
    seed: int = 0,
    phase: str = "final",
    rate: float = 1e-2,
    **changes: Any,
) -> Trial:
    """Return a trial of a catalog method; ``changes`` are to the conditions."""
    conditions = dataclasses.replace(CONDITIONS, task=task, task_options=OPTIONS[task], **changes)
    entry = registry.load(method, Path())
    return Trial(entry, {"learning_rate": rate}, seed, phase, conditions)


def build(
    trials: Trial | Sequence[Trial], base: Path, folder: Path, switches: Switches | None = None
) -> assemble.Bench:
    """Put trials on ``base`` with the conftest's rows as their data; plain without switches."""
    together = [trials] if isinstance(trials, Trial) else list(trials)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        write_jsonl(data / f"{split}.jsonl", rows())
    assemble.prepare_process(together[0].conditions)
    return assemble.build(together, str(base), data, switches)


def steps(at: assemble.Bench, count: int) -> torch.Tensor:
    """Train the first steps and return their losses ``[count, K]``."""
    stepper = at.stepper()
    at.model.train()
    batches = at.feed.training(at.examples("train"), [t.seed for t in at.trials])
    return torch.stack([stepper.step(i, next(batches)).clone() for i in range(count)])


def losses(at: assemble.Bench, count: int) -> list[float]:
    """Train the first steps of a single trial and return their losses."""
    found: list[float] = steps(at, count)[:, 0].tolist()
    return found


def no_dropout(at: assemble.Bench) -> assemble.Bench:
    """Switch dropout off: what compares with code that draws differently needs it."""
    for module in at.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return at
