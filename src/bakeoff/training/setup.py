"""Build what can be trained and scored from base model, method, task and data.

The order of the steps is the same for every method, so that a seed gives the same task head and
the same data order with any method.
"""

from __future__ import annotations

import dataclasses
import json
import logging
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

from bakeoff.core.trial import DESCRIPTIVE_FIELDS, HEAD_FACTOR, Conditions, Segment, Trial
from bakeoff.data.assets.cache import cache_folder
from bakeoff.data.rows import SPLITS, Row, read_rows
from bakeoff.engine import peft_patches, quantization
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.base_cache import (
    RandomLayers,
    active_entry,
    base_addresses,
    load_cached,
    release_if_replaced,
)
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.batching import BatchBuilder, StepBatch
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
from bakeoff.tasks._base import Batch, Example, Task, is_in_head, load_tokenizer
from bakeoff.training.setup_cache import (
    AttachedModel,
    MethodSetups,
    SetupCache,
    random_states,
)
from bakeoff.training.token_cache import load_or_encode

MEMORY_SHARE = 0.9
"""Share of the free memory that lanes may use; the rest is for evaluation and fragmentation."""

ATTACH_SEED = 1_000_003
"""Separates a method's random stream from the base's: methods draw different amounts, on which the
output layer must not depend."""

METHOD, SAVED, HEAD = "method", "saved", "head"
"""Kinds of parameter groups."""
SAVED_PARTS = (".modules_to_save.", ".trainable_tokens_delta", ".token_adapter.")
"""Parts of the names of the tensors that PEFT trains beside an adapter."""

log = logging.getLogger(__name__)


@dataclass
class TrainingSetup:
    """The trials of a group, one lane each, on one model with their task and data."""

    trials: tuple[Trial, ...]
    task: Task
    tokenizer: PreTrainedTokenizerBase
    lanes: Lanes
    hook: Hook
    batch_builder: BatchBuilder
    data: Path
    starts: tuple[InitialTensors, ...] | None = None
    """Each lane's trained tensors before its first step, if the method's saved form needs them."""
    may_read_test: bool = False
    """Whether the segment may read the test rows: only where its trials are scored on them."""
    reusable: tuple[MethodSetups, AttachedModel] | None = None
    """The model that all lanes share, and where it is kept for the method's next group."""

    @property
    def conditions(self) -> Conditions:
        """The study's shared conditions."""
        return self.trials[0].conditions

    @property
    def model(self) -> nn.Module:
        """The one model that all lanes share."""
        return self.lanes.model

    @property
    def virtual_tokens(self) -> int:
        """The number of virtual tokens that the method puts in front of every row."""
        config = getattr(self.model, "active_peft_config", None)
        return getattr(config, "num_virtual_tokens", None) or 0

    def rows(self, split: str) -> list[Row]:
        """Return the rows of one frozen split; ``test`` only if the segment may read it."""
        assert split in SPLITS
        assert split != "test" or self.may_read_test, "these trials must not read the test set"
        return read_rows(self.data / f"{split}.jsonl")

    def examples(self, split: str) -> list[Example]:
        """Return a split's tokens; each split is tokenised once per study."""
        return load_or_encode(self.task, self.tokenizer, self.data, split, lambda: self.rows(split))

    def fit_memory(self, engine: Mapping[str, Any]) -> None:
        """Limit the tokens of a pass to what fits into 90 % of the memory that is free now.

        The memory of one token was measured by the cost probe.
        """
        self.batch_builder.may_recompute = bool(engine.get("rescue"))
        token_bytes, free = engine.get("token_bytes"), free_bytes(self.conditions.device)
        limits = [n for n in [engine.get("pass_tokens")] if n is not None]
        if token_bytes and free is not None:
            limits.append(int(MEMORY_SHARE * free / token_bytes))
        self.batch_builder.pass_tokens = min(limits, default=None)

    def split_last_step(self) -> StepBatch | None:
        """Return the last step in smaller passes, after memory ran out; None if not possible."""
        smaller = self.batch_builder.split_last_step()
        ids = ", ".join(trial.id for trial in self.trials)
        if smaller is None:
            log.warning("out of memory, and passes cannot be smaller: trials %s", ids)
        else:
            log.info(
                "out of memory: passes of %d lanes and at most %s tokens, recompute %s: trials %s",
                self.batch_builder.width, self.batch_builder.pass_tokens or "any number of",
                self.batch_builder.active_switches.checkpointing, ids,
            )  # fmt: skip
        return smaller

    def keep_model(self) -> None:
        """Keep the attached model for the method's next group in this process, if it can be used.

        Nothing can be computed with this set-up afterwards.
        """
        if self.reusable is not None:
            setups, attached = self.reusable
            setups.keep_model(attached, self.lanes)

    def stepper(self) -> Stepper:
        """Return the stepper, which takes the optimizer steps of these trials."""
        groups = parameter_groups(self.model, self.task, self.trials[0])
        return Stepper(
            self.lanes,
            [tuple(g.rate(t) for g in groups) for t in self.trials],
            recipe(self.conditions, self.batch_builder.switches.graphs),
            self.task.item_losses,
            step_extras(self.hook),
        )


class RateGroup(NamedTuple):
    """Trained tensors with one learning rate: a factor on the trial's, or their own.

    ``kind`` is ``method``, ``saved`` (modules of the base beside an adapter) or ``head``.
    """

    names: list[str]
    factor: float = 1.0
    kind: str = METHOD

    def rate(self, trial: Trial) -> float:
        """Return the group's peak learning rate in this trial."""
        if self.kind == HEAD:
            return trial.head_learning_rate
        saved = trial.conditions.saved_learning_rate
        if self.kind == SAVED and saved is not None:
            return saved
        return self.factor * trial.learning_rate


def parameter_groups(model: nn.Module, task: Task, trial: Trial) -> list[RateGroup]:
    """Return the trained tensors by learning rate: the method's groups, saved modules, the head.

    Every method trains the task's new output layer. With a rate of its own for it, the best rate
    for that layer does not affect the comparison; saved modules have one for the same reason. If
    nothing else is trained, the trial's rate is that of the output layer, or of the saved modules.
    """
    head = {
        id(p)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in task.heads
        for p in module.parameters()
    }
    factors = trial.method.rates
    by_factor: dict[float, list[str]] = {1.0: []}
    heads, saved = [], []
    for name, parameter in trainable_parameters(model).items():
        if id(parameter) in head:
            heads.append(name)
        elif trial.conditions.saved_learning_rate is not None and is_saved(name):
            saved.append(name)
        else:
            factor = next((f for part, f in factors.items() if part in name), 1.0)
            by_factor.setdefault(factor, []).append(name)
    groups = [RateGroup(names, factor) for factor, names in by_factor.items() if names]
    if saved:
        groups.append(RateGroup(saved, kind=SAVED if groups else METHOD))
    own_rate = trial.conditions.head_learning_rate is not None or HEAD_FACTOR in trial.setting
    if heads and groups and own_rate:
        return [*groups, RateGroup(heads, kind=HEAD)]
    if not groups:
        return [RateGroup(heads)]
    groups[0].names.extend(heads)
    return groups


def is_saved(name: str) -> bool:
    """Return whether PEFT trains this tensor of the base as a whole, or for some of its tokens."""
    return any(part in name for part in SAVED_PARTS)


def recipe(c: Conditions, graphs: bool) -> Recipe:
    """Return the optimisation recipe that all trials under these conditions share."""
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
    """Return the accelerators that a study requests, and why some are off before any is tried."""
    c = segment.trials[0].conditions
    requested = Switches.from_request(segment.engine or {}, c.device, c.precision, c.steps)
    unsupported = {
        **quantization.unsupported_accelerators(c.quantize, c.quantizer),
        **requested.conflicts(),
    }
    reasons = {name: why for name, why in unsupported.items() if getattr(requested, name)}
    return dataclasses.replace(requested, **dict.fromkeys(reasons, False)), reasons


def allows_recompute(segment: Segment) -> bool:
    """Return whether layers may be recomputed when memory would run out otherwise."""
    return (segment.engine or {}).get("checkpointing") == "auto"


def prepare_process(conditions: Conditions) -> None:
    """Set threads, memory reuse and the cache of compiled code, and silence transformers' notes."""
    torch.set_num_threads(conditions.threads)
    # a later study finds what was compiled; PyTorch's own place is a temporary folder
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if conditions.device == "cpu":
        keep_freed_memory()
    quiet_transformers()


def quiet_transformers() -> None:
    """Silence transformers' progress bars and notes, and its requests to convert a base."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # transformers would ask the hub to convert a base without safetensors; we refuse such a base
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def make_task(conditions: Conditions) -> Task:
    """Return the study's task with its options."""
    plugin: type[Task] = task_class(conditions.task)
    return plugin(conditions.task_options)


def load_base(conditions: Conditions, task: Task, path: str, seed: int) -> nn.Module:
    """Return the frozen base model with the task's output layer initialised from ``seed``.

    Raises:
        PreflightError: the files of the base are refused (``engine.safe_loading``).
    """
    c = conditions
    # the labels decide the shape of an output layer
    options = json.dumps(task.options, sort_keys=True) if task.heads else None
    key = (path, c.revision, c.precision, c.device, c.quantize, c.quantizer, c.task, c.trusted)
    on_cpu = dataclasses.replace(c, device="cpu")
    random = RandomLayers(
        seed,
        lambda name: is_in_head(name, task.heads),
        None if c.quantize else lambda: _load(on_cpu, task, path, seed),
    )
    # only a base with a randomly initialised output layer depends on the seed
    drawn = random if task.heads else None
    return load_cached((*key, options), lambda: _load(c, task, path, seed), drawn)


def _load(conditions: Conditions, task: Task, path: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    c, kwargs = conditions, {"trust_remote_code": conditions.trusted}
    if c.quantize is not None and c.quantizer is not None:
        kwargs |= quantization.quantization_kwargs(
            c.quantize, c.quantizer, c.device, c.precision, task.heads
        )
    model: Any = task.load_model(path, c.revision, **kwargs)
    config = model.config.get_text_config()
    if task.heads or getattr(config, "pad_token_id", None) is None:
        # a new output layer may look for padding, and the tokenizer decides what padding is
        tokenizer = load_tokenizer(path, c.revision, c.trusted)
        config.pad_token_id = model.config.pad_token_id = int(tokenizer.pad_token_id or 0)
    model.requires_grad_(False)
    quantization.keep_trainable(model)
    set_dtypes(model, c.precision)
    log.info("base model loaded: %s on %s in %s", c.base, c.device, c.quantize or c.precision)
    return move_to_device(model, c.device)


def attach_context(
    task: Task, tokenizer: PreTrainedTokenizerBase, c: Conditions, data: Path
) -> AttachContext:
    """Return what a method may use of the study when it is attached."""
    pad = int(tokenizer.pad_token_id or 0)

    def examples() -> list[Example]:
        return load_or_encode(
            task, tokenizer, data, "train", lambda: read_rows(data / "train.jsonl")
        )

    def batches(rows: int) -> Iterator[Batch]:
        every = examples()
        # the same examples for every seed, so that trials initialised from data can share a base
        (picked,) = islice(step_indices(len(every), min(CALIBRATION_EXAMPLES, len(every)), 0), 1)
        for i in range(0, len(picked), rows):
            yield task.batch([every[n] for n in picked[i : i + rows]], pad, c.device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with autocast(c.device, c.precision):
            sums, counts = task.item_losses(model, batch)
        return sums.sum() / counts.sum()

    return AttachContext(task.task_type, task.heads, c.steps, examples, batches, loss)


def attach(trial: Trial, base: nn.Module, context: AttachContext) -> tuple[nn.Module, Hook, bool]:
    """Attach the trial's method to the base, with its trained tensors in fp32.

    Returns the model, the hook, and whether random numbers were drawn.

    Raises:
        Incompatible: the method cannot be attached to this base or task.
    """
    hook = build_hook(trial.method, trial.config)
    torch.manual_seed(trial.seed + ATTACH_SEED)
    before = random_states(trial.conditions.device)
    model = hook.attach(base, context)
    peft_patches.install_patches(model)
    move_to_device(model, trial.conditions.device)
    set_dtypes(model, trial.conditions.precision)
    trained = trainable_parameters(model)
    if not any(p.numel() for p in trained.values()):
        raise Incompatible("the method attached to nothing: no parameter would be trained")
    if any(quantization.is_packed(p) for p in trained.values()):
        raise Incompatible("it trains weights of the base, which are quantised")
    return model, hook, random_states(trial.conditions.device) != before


def build_setup(
    trials: Sequence[Trial],
    base_path: str,
    data: Path,
    switches: Switches | None = None,
    cache: SetupCache | None = None,
) -> TrainingSetup:
    """Load the base, attach the method and stack the initial tensors of all trials.

    With a ``cache``, what an earlier group of the method has left there is not made again.

    Raises:
        Incompatible: the method cannot be attached to this base or task.
        FrozenPartsDiffer: the method changes the base by seed, so these trials cannot share one.
    """
    c = trials[0].conditions
    task = make_task(c)
    place = base_path, c.revision, c.trusted
    tokenizer = load_tokenizer(*place) if cache is None else cache.tokenizer(*place)
    context = attach_context(task, tokenizer, c, data)
    switches = switches or Switches.all_off()
    setups = None
    if cache is not None:
        setups = cache.of_method(_cache_key(trials[0], base_path, data, switches))
    attached, starts = _attach_seeds(trials, task, base_path, context, setups)
    model, hook = attached.model, attached.hook
    groups = [g.names for g in parameter_groups(model, task, trials[0])]
    seeds = [t.seed for t in trials]
    initial = tuple(starts[s] for s in seeds)
    lanes = Lanes(model, initial, groups, seeds)
    if switches.lean_inputs:
        disable_input_casting(model)
    pad = int(tokenizer.pad_token_id or 0)
    builder = BatchBuilder(lanes, task, c.batch_size, pad, c.device, switches)
    kept = initial if hook.needs_start else None
    on = ", ".join(name for name, value in dataclasses.asdict(switches).items() if value)
    log.info(
        "%s: trials set up: %d, accelerators: %s", trials[0].method.name, len(trials), on or "none"
    )
    found = TrainingSetup(tuple(trials), task, tokenizer, lanes, hook, builder, data, kept)
    if setups is not None and setups.keeps(attached.start):
        found.reusable = setups, attached
    return found


def _attach_seeds(
    trials: Sequence[Trial], task: Task, base_path: str, context: AttachContext,
    setups: MethodSetups | None,
) -> tuple[AttachedModel, dict[int, InitialTensors]]:  # fmt: skip
    """Return a model with the method attached, and the initial tensors of each distinct seed.

    The method is attached once for each seed, to another copy of the base; once for all seeds if it
    draws no random numbers. The first trial's seed comes last, and its model is the one that all
    lanes share.
    """
    c = trials[0].conditions
    distinct = list(dict.fromkeys(t.seed for t in trials))
    kept = None if setups is None else setups.take_model()
    attached, starts = kept, dict[int, InitialTensors]()
    for seed in reversed(distinct):
        known = None if setups is None else setups.start(seed)
        if known is not None:
            starts[seed] = known
            if attached is not None or seed != distinct[0]:
                continue
        first = next(t for t in trials if t.seed == seed)
        base = load_base(c, task, base_path, seed)
        model, hook, drew = attach(first, base, context)
        drew = drew or bool(task.heads)
        release_if_replaced()
        # a later group may have other seeds
        several = setups is not None or len(distinct) > 1
        start = InitialTensors.from_model(model, several, base_addresses())
        if setups is not None and known is None:
            start = setups.add_start(seed, start, drew)
        starts.setdefault(seed, start)
        if attached is None and (seed == distinct[0] or not drew):
            attached = AttachedModel(model, hook, starts[seed], active_entry())
        del base, model, hook
        if not drew:  # the same for every seed
            starts = {s: starts.get(s, start) for s in distinct}
            break
    assert attached is not None
    return (attached if kept is None else kept.use_start(starts[distinct[0]])), starts


def _cache_key(trial: Trial, base_path: str, data: Path, switches: Switches) -> str:
    """Return all that a method's set-up depends on, except the seed."""
    method = dataclasses.asdict(trial.method)
    for prose in DESCRIPTIVE_FIELDS:
        del method[prose]
    parts = dataclasses.asdict(trial.conditions), method, trial.config, dataclasses.asdict(switches)
    return json.dumps([base_path, str(data), *parts], sort_keys=True)
