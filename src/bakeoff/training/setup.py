"""Put base, method, task and data together into something that can be trained and scored.

Stands between the plug-ins and the three things that train: a segment, the cost probe and the
preflight. What is done here is done in the same order for every method, so that the same seed
gives the same task head and the same data order whatever the method is.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bakeoff.core.trial import Conditions, Segment, Trial
from bakeoff.data.rows import SPLITS, Row, read_rows
from bakeoff.engine import peft_patches, quantization
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.base_cache import BaseCache
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.batching import BatchBuilder
from bakeoff.engine.device import (
    autocast,
    disable_input_casting,
    keep_freed_memory,
    move_to_device,
    set_dtypes,
)
from bakeoff.engine.lanes.lanes import InitialTensors, Lanes
from bakeoff.engine.loop import Recipe, Stepper
from bakeoff.engine.profiling import free_bytes
from bakeoff.methods.hook import (
    CALIBRATION_EXAMPLES,
    AttachContext,
    Hook,
    Incompatible,
    build_hook,
    step_extras,
    trainable_parameters,
)
from bakeoff.tasks import task_class
from bakeoff.tasks._base import Batch, Example, Task, load_tokenizer
from bakeoff.training.token_cache import load_or_encode

MEMORY_SHARE = 0.9
"""How much of the free memory lanes may take; the rest is for evaluation and fragmentation."""


@dataclass
class TrainingSetup:
    """The trials of a group on one model, with their task and data at hand, one lane each."""

    trials: tuple[Trial, ...]
    task: Task
    tokenizer: PreTrainedTokenizerBase
    lanes: Lanes
    hook: Hook
    batch_builder: BatchBuilder
    data: Path
    starts: tuple[InitialTensors, ...] | None = None
    """Each lane's trained tensors before its first step, where the method is saved by them."""

    @property
    def conditions(self) -> Conditions:
        """The study's shared conditions."""
        return self.trials[0].conditions

    @property
    def model(self) -> nn.Module:
        """The one model that the lanes stand on."""
        return self.lanes.model

    @property
    def virtual_tokens(self) -> int:
        """The tokens that the method puts before every row of the base's positions."""
        config = getattr(self.model, "active_peft_config", None)
        return getattr(config, "num_virtual_tokens", None) or 0

    def rows(self, split: str) -> list[Row]:
        """Read one frozen split; a search trial may not touch ``test``."""
        assert split in SPLITS
        final = self.trials[0].phase == "final"
        assert split != "test" or final, "the test set is read once"
        return read_rows(self.data / f"{split}.jsonl")

    def examples(self, split: str) -> list[Example]:
        """Return a split's tokens, tokenised once a study."""
        return load_or_encode(self.task, self.tokenizer, self.data, split, lambda: self.rows(split))

    def fit_memory(self, engine: Mapping[str, Any]) -> None:
        """Hold passes to what fits: 90 % of the memory that is free now, by the measured slope."""
        self.batch_builder.may_recompute = bool(engine.get("rescue"))
        token_bytes, free = engine.get("token_bytes"), free_bytes(self.conditions.device)
        limits = [n for n in [engine.get("pass_tokens")] if n is not None]
        if token_bytes and free is not None:
            limits.append(int(MEMORY_SHARE * free / token_bytes))
        self.batch_builder.pass_tokens = min(limits, default=None)

    def stepper(self) -> Stepper:
        """Return what takes these trials' optimizer steps."""
        groups = parameter_groups(self.model, self.task, self.trials[0])
        return Stepper(
            self.lanes,
            [tuple(g.rate(t) for g in groups) for t in self.trials],
            recipe(self.conditions, self.batch_builder.switches.graphs),
            self.task.item_losses,
            step_extras(self.hook),
        )


class RateGroup(NamedTuple):
    """Trained tensors that share a rate: a factor on the setting's, or (the head's) a fixed one."""

    names: list[str]
    factor: float = 1.0
    fixed: float | None = None

    def rate(self, trial: Trial) -> float:
        """Return the group's peak learning rate in this trial."""
        return self.fixed if self.fixed is not None else self.factor * trial.learning_rate


def parameter_groups(model: nn.Module, task: Task, trial: Trial) -> list[RateGroup]:
    """Return the trained tensors by learning rate: the method's own groups, then the head's.

    Every method trains the task's fresh output layer; a rate of its own keeps what suits that
    layer out of the comparison. Where nothing else is trained, the setting's rate is tried.
    """
    head = {
        id(p)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in task.heads
        for p in module.parameters()
    }
    factors = trial.method.rates
    by_factor: dict[float, list[str]] = {1.0: []}
    heads = []
    for name, parameter in trainable_parameters(model).items():
        if id(parameter) in head:
            heads.append(name)
        else:
            factor = next((f for part, f in factors.items() if part in name), 1.0)
            by_factor.setdefault(factor, []).append(name)
    groups = [RateGroup(names, factor) for factor, names in by_factor.items() if names]
    if heads and groups and trial.conditions.head_learning_rate is not None:
        return [*groups, RateGroup(heads, fixed=trial.conditions.head_learning_rate)]
    if not groups:
        return [RateGroup(heads)]
    groups[0].names.extend(heads)
    return groups


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


def requested_switches(segment: Segment) -> tuple[Switches, dict[str, str]]:
    """Return the switches that a study wishes for, and why some are off before any is tried."""
    c = segment.trials[0].conditions
    wishes = Switches.from_request(segment.engine or {}, c.device, c.precision, c.steps)
    unfit = {**quantization.unsupported_accelerators(c.quantize, c.quantizer), **wishes.conflicts()}
    reasons = {name: why for name, why in unfit.items() if getattr(wishes, name)}
    return dataclasses.replace(wishes, **dict.fromkeys(reasons, False)), reasons


def allows_recompute(segment: Segment) -> bool:
    """Say whether layers may be computed again where memory would run out otherwise."""
    return (segment.engine or {}).get("checkpointing") == "auto"


def prepare_process(conditions: Conditions) -> None:
    """Set this process up: threads, memory, and no progress bars or notes of transformers'."""
    torch.set_num_threads(conditions.threads)
    if conditions.device == "cpu":
        keep_freed_memory()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # no robot of the hub is asked to convert a base without safetensors: it is refused
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def make_task(conditions: Conditions) -> Task:
    """Return the study's task with its options."""
    plugin: type[Task] = task_class(conditions.task)
    return plugin(conditions.task_options)


def load_base(conditions: Conditions, task: Task, path: str, seed: int) -> nn.Module:
    """Return the base with the task's output layer drawn from ``seed``, everything frozen.

    Raises:
        PreflightError: what ``loading.check`` refuses.
    """
    c = conditions
    drawn = (seed, json.dumps(task.options, sort_keys=True)) if task.heads else None
    key = (
        path,
        c.revision,
        c.precision,
        c.device,
        c.quantize,
        c.quantizer,
        c.task,
        c.trusted,
        drawn,
    )
    return BaseCache.base(key, lambda: _load(conditions, task, path, seed))


def _load(conditions: Conditions, task: Task, path: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    c, how = conditions, {"trust_remote_code": conditions.trusted}
    if c.quantize is not None and c.quantizer is not None:
        how |= quantization.quantization_kwargs(
            c.quantize, c.quantizer, c.device, c.precision, task.heads
        )
    model: Any = task.load_model(path, c.revision, **how)
    config = model.config.get_text_config()
    if task.heads or getattr(config, "pad_token_id", None) is None:
        # a fresh output layer may look for padding: batches are padded as the tokenizer says
        tokenizer = load_tokenizer(path, c.revision, c.trusted)
        config.pad_token_id = model.config.pad_token_id = int(tokenizer.pad_token_id or 0)
    model.requires_grad_(False)
    quantization.keep_trainable(model)
    set_dtypes(model, c.precision)
    return move_to_device(model, c.device)


def attach_context(
    task: Task, tokenizer: PreTrainedTokenizerBase, c: Conditions, data: Path
) -> AttachContext:
    """Return what a method may know of the study when it is attached."""
    pad = int(tokenizer.pad_token_id or 0)

    def examples() -> list[Example]:
        return load_or_encode(task, tokenizer, data, "train", lambda: read_rows(data / "train.jsonl"))

    def batches(rows: int) -> Iterator[Batch]:
        found = examples()
        # the same examples for every seed: trials that start from data can share a base
        (picked,) = islice(step_indices(len(found), min(CALIBRATION_EXAMPLES, len(found)), 0), 1)
        for i in range(0, len(picked), rows):
            yield task.batch([found[n] for n in picked[i : i + rows]], pad, c.device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with autocast(c.device, c.precision):
            sums, counts = task.item_losses(model, batch)
        return sums.sum() / counts.sum()

    return AttachContext(task.task_type, task.heads, c.steps, examples, batches, loss)


def attach(trial: Trial, base: nn.Module, ground: AttachContext) -> tuple[nn.Module, Hook]:
    """Put the trial's method on the base; trained tensors in fp32.

    Raises:
        Incompatible: the method cannot be put on this base or task.
    """
    hook = build_hook(trial.method, trial.config)
    # its own stream: methods draw different amounts, the head above was drawn before them all
    torch.manual_seed(trial.seed + 1_000_003)
    model = hook.attach(base, ground)
    peft_patches.install_patches(model)
    move_to_device(model, trial.conditions.device)
    set_dtypes(model, trial.conditions.precision)
    trained = trainable_parameters(model)
    if not any(p.numel() for p in trained.values()):
        raise Incompatible("the method attached to nothing: no parameter would be trained")
    if any(quantization.is_packed(p) for p in trained.values()):
        raise Incompatible("it trains weights of the base, which are quantised")
    return model, hook


def build_setup(
    trials: Sequence[Trial], base_path: str, data: Path, switches: Switches | None = None
) -> TrainingSetup:
    """Load the base, attach the method and stack one start a trial; return the setup.

    The method is attached once for each distinct seed, on a fresh base, to take its start; the
    last one stays.

    Raises:
        Incompatible: the method cannot be put on this base or task.
        NotShared: the method changes the base by seed, so these trials cannot share one.
    """
    c = trials[0].conditions
    task = make_task(c)
    tokenizer = load_tokenizer(base_path, c.revision, c.trusted)
    around = attach_context(task, tokenizer, c, data)
    distinct = list(dict.fromkeys(t.seed for t in trials))
    starts: dict[int, InitialTensors] = {}
    for seed in reversed(distinct):
        first = next(t for t in trials if t.seed == seed)
        model, hook = attach(first, load_base(c, task, base_path, seed), around)
        BaseCache.spare()
        starts[seed] = InitialTensors.of(model, checksums=len(distinct) > 1)
        if seed != distinct[0]:
            del model, hook
    groups = [g.names for g in parameter_groups(model, task, trials[0])]
    on = switches or Switches.all_off()
    seeds = [t.seed for t in trials]
    each = tuple(starts[s] for s in seeds)
    lanes = Lanes(model, each, groups, seeds)
    if on.lean_inputs:
        disable_input_casting(model)
    feed = BatchBuilder(lanes, task, c.batch_size, int(tokenizer.pad_token_id or 0), c.device, on)
    kept = each if hook.needs_start else None
    return TrainingSetup(tuple(trials), task, tokenizer, lanes, hook, feed, data, kept)
