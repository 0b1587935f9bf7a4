"""Count the parameters that a method trains on a base; find its size for a target count.

Only the base's architecture is used, not its weights. The task's new output layer is not counted:
all methods train it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from bakeoff.core.errors import BakeoffError
from bakeoff.core.trial import MethodEntry, Segment
from bakeoff.core.worker_log import quiet_libraries
from bakeoff.engine.safe_loading import from_pretrained_kwargs
from bakeoff.methods.hook import AttachContext, Incompatible, build_hook, trainable_parameters

MATCH_TOLERANCE = 0.1
"""Largest relative difference to the target that counts as equal."""
MAX_SIZE = 1 << 20
"""Largest value of a size argument that is tried."""
AUTO_MODELS = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}
VALUE_ONLY_INITS = {"pissa", "olora", "corda", "lora_ga", "eva", "loftq", "orthogonal", "gaussian"}
"""Initialisations of LoRA that change values and not shapes, so the count does not need them.

EVA redistributes ranks by the data; its count is the one before that.
"""
INIT_HOOKS = ("residual", "corda", "lora_ga", "eva")
"""Hooks that only initialise LoRA."""


class Architecture(NamedTuple):
    """A base's architecture, PEFT's name of its task, and the names of its new output layer."""

    config: Any
    task_type: str
    heads: tuple[str, ...]

    def model(self, layers: int | None) -> nn.Module:
        """Return a model without weights (meta device), or with ``layers`` random layers."""
        config = copy.deepcopy(self.config)
        if layers is not None:
            inner = config.get_text_config()
            inner.num_hidden_layers = layers
            if getattr(inner, "layer_types", None):
                inner.layer_types = inner.layer_types[:layers]
            if config.is_encoder_decoder:
                config.decoder_layers = config.num_decoder_layers = layers
        with torch.device("meta" if layers is None else "cpu"):
            model: nn.Module = AUTO_MODELS[self.task_type].from_config(config)
        return model.requires_grad_(False)

    @property
    def layers(self) -> int:
        """The number of layers of the base."""
        return int(self.config.get_text_config().num_hidden_layers)


class Size(NamedTuple):
    """The value of a size argument, and the number of parameters that it trains."""

    value: Any
    parameters: int


def load_architecture(
    path: str,
    task_type: str,
    heads: Sequence[str],
    revision: str | None = None,
    trust: bool = False,
) -> Architecture:
    """Return the architecture of the base at ``path``."""
    config = AutoConfig.from_pretrained(path, **from_pretrained_kwargs(path, revision, trust))
    return Architecture(config, task_type, tuple(heads))


def count_base(value: dict[str, Any]) -> int | None:
    """Return the number of parameters of a base; None if its architecture cannot be built.

    ``value`` has ``path``, ``revision``, ``trusted``, ``task_type`` and ``heads``.
    """
    try:
        with quiet_libraries():
            shape = load_architecture(
                value["path"], value["task_type"], value["heads"], value["revision"],
                value["trusted"],
            )  # fmt: skip
            named = shape.model(None).named_parameters()
            heads = set(shape.heads)
            return sum(p.numel() for n, p in named if not heads & set(n.split(".")))
    except Exception:  # a base with code of its own, or one that cannot be loaded at all
        return None


def count(entry: MethodEntry, config: dict[str, Any], shape: Architecture, steps: int) -> int:
    """Return the number of parameters that the method would train, without the task's output layer.

    A method that decomposes weights cannot be attached without them. It is attached to one and to
    two layers of random weights, and the count is extrapolated to all layers. Where data or chance
    decide (CPT's context, EVA's ranks, AdaLoRA's counters) the real number differs a little.

    Raises:
        Incompatible: the method cannot be attached to this base.
    """
    try:
        return _count_attached(entry, config, shape.model(None), shape, steps)
    except (Incompatible, NotImplementedError, RuntimeError):
        one, two = (_count_attached(entry, config, shape.model(n), shape, steps) for n in (1, 2))
        return one + (shape.layers - 1) * (two - one)


def find_size(
    entry: MethodEntry, config: dict[str, Any], target: int, shape: Architecture, steps: int
) -> Size | None:
    """Return the size with the count nearest to ``target``; None if the method has no size."""
    if entry.size is None:
        return None
    argument = entry.size["argument"]

    @functools.cache
    def count_at(value: Any) -> int | None:
        try:
            return count(entry, {**config, argument: value}, shape, steps)
        except Incompatible:
            return None

    if "values" in entry.size:
        tried = entry.size["values"]
    else:
        tried = _bracket_size(target, entry.size.get("step", 1), count_at)
    sizes = [Size(v, n) for v in tried if (n := count_at(v)) is not None]
    return min(sizes, key=lambda s: abs(s.parameters - target), default=None)


def _bracket_size(target: int, step: int, count_at: Callable[[Any], int | None]) -> list[int]:
    """Return the two multiples of ``step`` whose counts enclose ``target``, by bisection.

    The count grows with every size argument except block sizes, whose values are listed in the
    entry, and with a rank only up to the base's width. A value that cannot be attached counts as
    too large.
    """
    low, high = 1, 2

    def below(k: int) -> bool:
        n = count_at(k * step)
        return n is not None and n < target

    while below(high) and high * step < MAX_SIZE:
        if (most := count_at(high * step)) == count_at(low * step) and most is not None:
            low, target = low // 2, most
            break
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return [low * step, high * step]


def match_parameters(value: dict[str, Any]) -> dict[str, Any]:
    """Find the sizes of a study's methods; a worker's entry point.

    ``value`` has ``segment`` (one trial per method, the control first), ``task_type``, ``heads``,
    ``target`` (None: the control's count) and ``fixed`` (method -> arguments that the user set).
    Returns ``{"sizes": [...]}``, one row per method, or an ``error`` to raise.
    """
    try:
        return _match(value)
    except BakeoffError as error:  # the user must fix it
        return {"error": error.to_json()}


def _match(value: dict[str, Any]) -> dict[str, Any]:
    segment = Segment.from_json(value["segment"])
    control = segment.trials[0]
    with quiet_libraries():  # the trials record what libraries warn of
        c, heads = control.conditions, value["heads"]
        shape = load_architecture(
            segment.base_path, value["task_type"], heads, c.revision, c.trusted
        )
        steps = control.conditions.steps
        target = value["target"] or count(control.method, control.config, shape, steps)
        rows = []
        for trial in segment.trials:
            fixed = value["fixed"].get(trial.method.name, [])
            is_target = trial is control and value["target"] is None
            rows.append(
                _size_row(trial.method, trial.config, target, fixed, is_target, shape, steps)
            )
    return {"sizes": rows}


def _size_row(
    entry: MethodEntry, config: dict[str, Any], target: int, fixed: Sequence[str], is_target: bool,
    shape: Architecture, steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Return one method's size, and the reason if its count does not match the target."""
    argument = entry.size["argument"] if entry.size else None
    row: dict[str, Any] = {
        "method": entry.name, "argument": argument, "value": None, "target": target,
    }  # fmt: skip
    try:
        if is_target or argument is None or argument in fixed:
            size = Size(None, count(entry, config, shape, steps))
            note = "you chose its size" if argument in fixed else "it has no size to choose"
            note = "sets the size" if is_target else note
        else:
            nearest = find_size(entry, config, target, shape, steps)
            if nearest is None:
                raise Incompatible("no size of it can be attached to this base")
            size, note = nearest, None
    except Incompatible as error:
        return {**row, "parameters": None, "off": None, "matched": False, "note": str(error)}
    off = size.parameters / target - 1
    near = abs(off) <= MATCH_TOLERANCE
    if note is None and not near:
        note = "the nearest size it has"
    return {
        **row, "value": size.value, "parameters": size.parameters, "off": off, "matched": near,
        "note": note,
    }  # fmt: skip


def _without_init(entry: MethodEntry, config: dict[str, Any]) -> tuple[MethodEntry, dict[str, Any]]:
    """Return a specially initialised LoRA as plain LoRA with the same shapes."""
    init = str(config.get("init_lora_weights", "")).split("_niter")[0]
    if init not in VALUE_ONLY_INITS:
        return entry, config
    plain = {k: v for k, v in config.items() if not k.endswith("_config")}
    hook = None if entry.hook in INIT_HOOKS else entry.hook
    return dataclasses.replace(entry, hook=hook), {**plain, "init_lora_weights": True}


def attach_without_weights(
    entry: MethodEntry, config: dict[str, Any], base: nn.Module, shape: Architecture, steps: int
) -> nn.Module:
    """Attach the method to ``base``, which may have no weights, with random tokens as data."""
    return build_hook(*_without_init(entry, config)).attach(base, fake_context(shape, steps))


def _count_attached(
    entry: MethodEntry, config: dict[str, Any], base: nn.Module, shape: Architecture, steps: int
) -> int:
    model = attach_without_weights(entry, config, base, shape, steps)
    heads = set(shape.heads)
    return sum(
        p.numel() for n, p in trainable_parameters(model).items() if not heads & set(n.split("."))
    )


class _FakeRow(NamedTuple):
    tokens: tuple[int, ...]
    labels: tuple[int, ...]


class _FakeBatch(NamedTuple):
    inputs: dict[str, Tensor]
    rows: int


def fake_context(shape: Architecture, steps: int) -> AttachContext:
    """Return an attach context with random tokens: counts do not depend on the data."""
    generator = torch.Generator().manual_seed(0)
    most = int(shape.config.get_text_config().vocab_size)
    ids = torch.randint(0, most, (64, 16), generator=generator)

    def batches(rows: int) -> Iterator[Any]:
        for i in range(0, len(ids), rows):
            batch = ids[i : i + rows]
            yield _FakeBatch(
                {"input_ids": batch, "attention_mask": torch.ones_like(batch)}, len(batch)
            )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        mean: Tensor = model(**batch.inputs).logits.square().mean()
        return mean

    rows = [_FakeRow(tuple(r), (-100,) * 8 + tuple(r[8:])) for r in ids.tolist()]
    return AttachContext(shape.task_type, shape.heads, steps, lambda: rows, batches, loss)
