"""Put base, method, task and data together into something that can be trained and scored.

Stands between the plug-ins and the three things that train: a segment, the cost probe and the
preflight. What is done here is done in the same order for every method, so that the same seed
gives the same task head and the same data order whatever the method is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bakeoff import registry
from bakeoff.data import SPLITS, Row, read_rows
from bakeoff.engine.device import autocast, set_dtypes
from bakeoff.engine.loop import Recipe, Stepper
from bakeoff.engine.optim import Group
from bakeoff.engine.order import step_indices
from bakeoff.methods.hooks import Hook, Incompatible, make, trainable
from bakeoff.results import SplitScores
from bakeoff.tasks import Batch, Example, Task, load_tokenizer
from bakeoff.trial import Conditions, Trial


@dataclass
class Bench:
    """One trial's model with its task and data at hand."""

    trial: Trial
    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    hook: Hook
    data: Path

    @property
    def conditions(self) -> Conditions:
        """The study's shared conditions."""
        return self.trial.conditions

    def rows(self, split: str) -> list[Row]:
        """Read one frozen split; a search trial may not touch ``test``."""
        assert split in SPLITS
        assert split != "test" or self.trial.phase == "final", "the test set is read once"
        return read_rows(self.data / f"{split}.jsonl")

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Pad examples on the study's device."""
        pad_id = int(self.tokenizer.pad_token_id or 0)
        return self.task.batch(examples, pad_id, self.conditions.device)

    def train_batches(self, examples: Sequence[Example]) -> Iterator[Batch]:
        """Yield each step's batch, in the seed's order."""
        for step in step_indices(len(examples), self.conditions.batch_size, self.trial.seed):
            yield self.batch([examples[i] for i in step])

    def groups(self) -> tuple[Group, ...]:
        """Return the trained parameters with their rates.

        Every method trains the task's fresh output layer; a rate of its own keeps what suits that
        layer out of the comparison. Where nothing else is trained, the setting's rate is tried.
        """
        rate, head_rate = self.trial.learning_rate, self.conditions.head_learning_rate
        head = {
            id(p)
            for name, module in self.model.named_modules()
            if name.rsplit(".", 1)[-1] in self.task.heads
            for p in module.parameters()
        }
        method = [p for p in trainable(self.model).values() if id(p) not in head]
        heads = [p for p in trainable(self.model).values() if id(p) in head]
        if head_rate is None or not method or not heads:
            return (Group([*method, *heads], rate),)
        return Group(method, rate), Group(heads, head_rate)

    def stepper(self) -> Stepper:
        """Return what takes this trial's optimizer steps."""
        model, hook = self.model, self.hook

        def loss(batch: object) -> torch.Tensor:
            assert isinstance(batch, Batch)
            return self.task.loss(model, batch)

        return Stepper(
            model,
            self.groups(),
            recipe(self.conditions),
            loss,
            lambda: hook.penalty(model),
            lambda step: hook.after_step(model, step),
        )


def recipe(c: Conditions) -> Recipe:
    """Return how every trial under these conditions optimises."""
    return Recipe(
        steps=c.steps,
        warmup=c.warmup,
        decay=c.decay,
        weight_decay=c.weight_decay,
        clip=c.clip,
        device=c.device,
        precision=c.precision,
    )


def prepare_process(conditions: Conditions) -> None:
    """Set this process up: threads, and no progress bars or notes of transformers'."""
    torch.set_num_threads(conditions.threads)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def make_task(conditions: Conditions) -> Task:
    """Return the study's task with its options."""
    plugin: type[Task] = registry.find("tasks", conditions.task).TASK
    return plugin(conditions.task_options)


def load_base(conditions: Conditions, task: Task, path: str, seed: int) -> nn.Module:
    """Load the base with the task's output layer drawn from ``seed``, everything frozen."""
    torch.manual_seed(seed)
    model: Any = task.load_model(path, conditions.revision)
    if getattr(model.config, "pad_token_id", None) is None:
        tokenizer = load_tokenizer(path, conditions.revision)
        model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    set_dtypes(model, conditions.precision)
    placed: nn.Module = model.to(conditions.device)
    return placed


def attach(trial: Trial, task: Task, base: nn.Module) -> tuple[nn.Module, Hook]:
    """Put the trial's method on the base; trained tensors in fp32.

    Raises:
        Incompatible: the method cannot be put on this base or task.
    """
    hook = make(trial.method, trial.config)
    # its own stream: methods draw different amounts, the head above was drawn before them all
    torch.manual_seed(trial.seed + 1_000_003)
    model = hook.attach(base, task.task_type, task.heads)
    model.to(trial.conditions.device)
    set_dtypes(model, trial.conditions.precision)
    if not trainable(model):
        raise Incompatible("the method attached to nothing: no parameter would be trained")
    # dropout draws, the same start for every method
    torch.manual_seed(trial.seed + 2_000_003)
    return model, hook


def build(trial: Trial, base_path: str, data: Path) -> Bench:
    """Load the base, attach the method and return the bench."""
    task = make_task(trial.conditions)
    tokenizer = load_tokenizer(base_path, trial.conditions.revision)
    base = load_base(trial.conditions, task, base_path, trial.seed)
    model, hook = attach(trial, task, base)
    return Bench(trial, task, tokenizer, model, hook, data)


@torch.no_grad()
def mean_loss(bench: Bench, examples: Sequence[Example]) -> float:
    """Return the mean loss over all supervised units of ``examples``, in nats."""
    c = bench.conditions
    bench.model.eval()
    order = sorted(examples, key=lambda e: len(e.tokens))
    sums, counts = [], []
    for start in range(0, len(order), c.evaluation_batch_size):
        batch = bench.batch(order[start : start + c.evaluation_batch_size])
        with autocast(c.device, c.precision):
            losses = bench.task.item_losses(bench.model, batch)
        sums.append(losses.sums.sum())
        counts.append(losses.counts.sum())
    return float(torch.stack(sums).double().sum() / torch.stack(counts).double().sum())


@torch.no_grad()
def score_split(bench: Bench, split: str, loss: float | None) -> SplitScores:
    """Answer every item of a split and score it with the study's metric."""
    c = bench.conditions
    bench.model.eval()
    rows = bench.rows(split)
    by_length = sorted(range(len(rows)), key=lambda i: sum(len(str(v)) for v in rows[i].values()))
    answers: dict[int, str] = {}
    for start in range(0, len(rows), c.evaluation_batch_size):
        picked = by_length[start : start + c.evaluation_batch_size]
        with autocast(c.device, c.precision):
            got = bench.task.predict(
                bench.model, bench.tokenizer, [rows[i] for i in picked], c.device
            )
        answers.update(zip(picked, got, strict=True))
    predictions = tuple(answers[i] for i in range(len(rows)))
    metric = registry.find("metrics", c.metric)
    scores = metric.score(predictions, bench.task.references(rows))
    return SplitScores(tuple(scores), predictions, loss)
