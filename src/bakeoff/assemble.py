"""Put base, method, task and data together into something that can be trained and scored.

Stands between the plug-ins and the three things that train: a segment, the cost probe and the
preflight. What is done here is done in the same order for every method, so that the same seed
gives the same task head and the same data order whatever the method is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bakeoff import registry
from bakeoff.data import SPLITS, Row, read_rows
from bakeoff.engine import shims
from bakeoff.engine.device import keep_freed_memory, lean_inputs, set_dtypes
from bakeoff.engine.feed import Feed
from bakeoff.engine.lanes import Lanes, Start
from bakeoff.engine.loop import Recipe, Stepper
from bakeoff.engine.meter import free_bytes
from bakeoff.engine.switches import Switches
from bakeoff.methods.hooks import Hook, Incompatible, make, trainable
from bakeoff.tasks import Example, Task, load_tokenizer
from bakeoff.tokens import encode_split
from bakeoff.trial import Conditions, Trial

MEMORY_SHARE = 0.9
"""How much of the free memory lanes may take; the rest is for evaluation and fragmentation."""


@dataclass
class Bench:
    """The trials of a group on one model, with their task and data at hand, one lane each."""

    trials: tuple[Trial, ...]
    task: Task
    tokenizer: PreTrainedTokenizerBase
    lanes: Lanes
    hook: Hook
    feed: Feed
    data: Path

    @property
    def conditions(self) -> Conditions:
        """The study's shared conditions."""
        return self.trials[0].conditions

    @property
    def model(self) -> nn.Module:
        """The one model that the lanes stand on."""
        return self.lanes.model

    def rows(self, split: str) -> list[Row]:
        """Read one frozen split; a search trial may not touch ``test``."""
        assert split in SPLITS
        final = self.trials[0].phase == "final"
        assert split != "test" or final, "the test set is read once"
        return read_rows(self.data / f"{split}.jsonl")

    def examples(self, split: str) -> list[Example]:
        """Return a split's tokens, tokenised once a study."""
        return encode_split(self.task, self.tokenizer, self.data, split, lambda: self.rows(split))

    def fit_memory(self, token_bytes: float | None) -> None:
        """Hold passes to what fits: 90 % of the memory that is free now, by the measured slope."""
        free = free_bytes(self.conditions.device)
        if token_bytes and free is not None:
            self.feed.pass_tokens = int(MEMORY_SHARE * free / token_bytes)

    def stepper(self) -> Stepper:
        """Return what takes these trials' optimizer steps."""
        hook = self.hook
        has_penalty = type(hook).penalty is not Hook.penalty
        acts = type(hook).after_step is not Hook.after_step
        return Stepper(
            self.lanes,
            [rates(t, len(self.lanes.stack.spans)) for t in self.trials],
            recipe(self.conditions, self.feed.switches.graphs),
            self.task.item_losses,
            hook.penalty if has_penalty else None,
            hook.after_step if acts else None,
        )


def rates(trial: Trial, groups: int) -> tuple[float, ...]:
    """Return the peak learning rate of each parameter group: the method's, then the head's."""
    head = trial.conditions.head_learning_rate
    if groups == 1 or head is None:
        return (trial.learning_rate,) * groups
    return trial.learning_rate, head


def parameter_groups(model: nn.Module, task: Task, own_rate: bool) -> list[list[str]]:
    """Return the trained tensors' names: the method's and, with ``own_rate``, the head's apart.

    Every method trains the task's fresh output layer; a rate of its own keeps what suits that
    layer out of the comparison. Where nothing else is trained, the setting's rate is tried.
    """
    head = {
        id(p)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in task.heads
        for p in module.parameters()
    }
    method = [n for n, p in trainable(model).items() if id(p) not in head]
    heads = [n for n, p in trainable(model).items() if id(p) in head]
    if not own_rate or not method or not heads:
        return [[*method, *heads]]
    return [method, heads]


def recipe(c: Conditions, graphs: bool) -> Recipe:
    """Return how every trial under these conditions optimises."""
    return Recipe(
        steps=c.steps,
        warmup=c.warmup,
        decay=c.decay,
        weight_decay=c.weight_decay,
        clip=c.clip,
        device=c.device,
        precision=c.precision,
        graphs=graphs,
    )


def prepare_process(conditions: Conditions) -> None:
    """Set this process up: threads, memory, and no progress bars or notes of transformers'."""
    torch.set_num_threads(conditions.threads)
    if conditions.device == "cpu":
        keep_freed_memory()
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
    shims.install(model)
    model.to(trial.conditions.device)
    set_dtypes(model, trial.conditions.precision)
    if not trainable(model):
        raise Incompatible("the method attached to nothing: no parameter would be trained")
    return model, hook


def build(
    trials: Sequence[Trial], base_path: str, data: Path, switches: Switches | None = None
) -> Bench:
    """Load the base, attach the method and stack one start a trial; return the bench.

    The method is attached once for each distinct seed, on a fresh base, to take its start; the
    last one stays.

    Raises:
        Incompatible: the method cannot be put on this base or task.
        NotShared: the method changes the base by seed, so these trials cannot share one.
    """
    c = trials[0].conditions
    task = make_task(c)
    tokenizer = load_tokenizer(base_path, c.revision)
    distinct = list(dict.fromkeys(t.seed for t in trials))
    starts: dict[int, Start] = {}
    for seed in reversed(distinct):
        first = next(t for t in trials if t.seed == seed)
        model, hook = attach(first, task, load_base(c, task, base_path, seed))
        starts[seed] = Start.of(model, checksums=len(distinct) > 1)
        if seed != distinct[0]:
            del model, hook
    groups = parameter_groups(model, task, c.head_learning_rate is not None)
    on = switches or Switches.plain()
    seeds = [t.seed for t in trials]
    lanes = Lanes(model, [starts[s] for s in seeds], groups, seeds)
    if on.lean_inputs:
        lean_inputs(model)
    feed = Feed(lanes, task, c.batch_size, int(tokenizer.pad_token_id or 0), c.device, on)
    return Bench(tuple(trials), task, tokenizer, lanes, hook, feed, data)
