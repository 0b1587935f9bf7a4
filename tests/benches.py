"""Trials on the tiny models, built and trained by hand: what engine and method tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from conftest import rows, write_jsonl

from bakeoff import assemble
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


def build(trial: Trial, base: Path, folder: Path) -> assemble.Bench:
    """Put the trial on ``base`` with the conftest's rows as its data."""
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", rows())
    assemble.prepare_process(trial.conditions)
    return assemble.build(trial, str(base), folder)


def losses(at: assemble.Bench, steps: int) -> list[float]:
    """Train the first steps and return their losses."""
    examples = at.task.encode(at.tokenizer, at.rows("train"))
    stepper = at.stepper()
    at.model.train()
    batches = at.train_batches(examples)
    return [float(stepper.step(i, next(batches))) for i in range(steps)]
