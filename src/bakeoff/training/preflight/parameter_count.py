"""How many parameters a method trains on a base, and which size of it trains a wanted number.

From the base's architecture alone: no weights are read. Called by ``study`` through an executor
(``match``) when a study asks for equal trainable parameters, and by ``capabilities`` for what a
method would cost on the user's model. The task's fresh output layer is not counted: every method
trains it alike.
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
from bakeoff.core.quiet import quiet_libraries
from bakeoff.core.trial import MethodEntry, Segment
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
"""Starts of LoRA that change its values, not its shapes: they need not be computed to be counted.

EVA shares the ranks out anew, by data that is not there yet: its count is the one it starts from.
"""
INIT_HOOKS = ("residual", "corda", "lora_ga", "eva")
"""Hooks that only give LoRA its start."""


class Architecture(NamedTuple):
    """A base's architecture, what it is trained for, and the names of its fresh output layer."""

    config: Any
    task_type: str
    heads: tuple[str, ...]

    def model(self, layers: int | None) -> nn.Module:
        """Return it without weights, or with ``layers`` layers of random ones."""
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
        """How many layers the base has."""
        return int(self.config.get_text_config().num_hidden_layers)


class Size(NamedTuple):
    """The value of a size argument and how many parameters are trained with it."""

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


def count(entry: MethodEntry, config: dict[str, Any], shape: Architecture, steps: int) -> int:
    """Return how many parameters the method would train, without the task's output layer.

    A method that cannot be attached without weights (it decomposes them) is attached to one and to
    two layers of random weights, and counted on from there. What data or chance decides (CPT's
    context, EVA's shares, AdaLoRA's counters) makes the real number a little other.

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
    """Return the size whose count is nearest to ``target``; None where there is none to choose."""
    if entry.size is None:
        return None
    argument = entry.size["argument"]

    @functools.cache
    def counted(value: Any) -> int | None:
        try:
            return count(entry, {**config, argument: value}, shape, steps)
        except Incompatible:
            return None

    if "values" in entry.size:
        tried = entry.size["values"]
    else:
        tried = _bracket_size(target, entry.size.get("step", 1), counted)
    sizes = [Size(v, n) for v in tried if (n := counted(v)) is not None]
    return min(sizes, key=lambda s: abs(s.parameters - target), default=None)


def _bracket_size(target: int, step: int, counted: Callable[[Any], int | None]) -> list[int]:
    """Return the two multiples of ``step`` on either side of ``target``, by bisection.

    The count rises with the value in all but block sizes, which entries list as values. A value
    that is refused is taken for too large.
    """
    low, high = 1, 2

    def below(k: int) -> bool:
        n = counted(k * step)
        return n is not None and n < target

    while below(high) and high * step < MAX_SIZE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return [low * step, high * step]


def match_parameters(value: dict[str, Any]) -> dict[str, Any]:
    """Solve the sizes of a study's methods; JSON in and out, called by an executor.

    ``value`` has ``segment`` (a trial a method, the control first), ``task_type``, ``heads``,
    ``target`` (None: the control's own count) and ``fixed`` (method -> arguments that the user
    chose). Returns ``{"sizes": [...]}``, a row a method.
    """
    try:
        return _match(value)
    except BakeoffError as error:  # what the user must mend
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
            own = trial is control and value["target"] is None
            rows.append(_size_row(trial.method, trial.config, target, fixed, own, shape, steps))
    return {"sizes": rows}


def _size_row(
    entry: MethodEntry, config: dict[str, Any], target: int, fixed: Sequence[str], own: bool,
    shape: Architecture, steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Return one method's size, and why it is not matched where it is not."""
    argument = entry.size["argument"] if entry.size else None
    row: dict[str, Any] = {
        "method": entry.name, "argument": argument, "value": None, "target": target,
    }  # fmt: skip
    try:
        if own or argument is None or argument in fixed:
            found = Size(None, count(entry, config, shape, steps))
            note = "you chose its size" if argument in fixed else "it has no size to choose"
            note = "sets the size" if own else note
        else:
            solved = find_size(entry, config, target, shape, steps)
            if solved is None:
                raise Incompatible("no size of it can be attached to this base")
            found, note = solved, None
    except Incompatible as error:
        return {**row, "parameters": None, "off": None, "matched": False, "note": str(error)}
    off = found.parameters / target - 1
    near = abs(off) <= MATCH_TOLERANCE
    if note is None and not near:
        note = "the nearest size it has"
    return {
        **row, "value": found.value, "parameters": found.parameters, "off": off, "matched": near,
        "note": note,
    }  # fmt: skip


def _without_init(entry: MethodEntry, config: dict[str, Any]) -> tuple[MethodEntry, dict[str, Any]]:
    """Return a LoRA with a start of its own as the plain LoRA of its shapes."""
    start = str(config.get("init_lora_weights", "")).split("_niter")[0]
    if start not in VALUE_ONLY_INITS:
        return entry, config
    plain = {k: v for k, v in config.items() if not k.endswith("_config")}
    hook = None if entry.hook in INIT_HOOKS else entry.hook
    return dataclasses.replace(entry, hook=hook), {**plain, "init_lora_weights": True}


def attach_without_weights(
    entry: MethodEntry, config: dict[str, Any], base: nn.Module, shape: Architecture, steps: int
) -> nn.Module:
    """Return the method on ``base``, which may have no weights, with random tokens for data."""
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
    """Return surroundings with random tokens for data: no count depends on which they are."""
    generator = torch.Generator().manual_seed(0)
    most = int(shape.config.get_text_config().vocab_size)
    ids = torch.randint(0, most, (64, 16), generator=generator)

    def batches(rows: int) -> Iterator[Any]:
        for i in range(0, len(ids), rows):
            given = ids[i : i + rows]
            yield _FakeBatch(
                {"input_ids": given, "attention_mask": torch.ones_like(given)}, len(given)
            )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model(**batch.inputs).logits.square().mean()
        return found

    rows = [_FakeRow(tuple(r), (-100,) * 8 + tuple(r[8:])) for r in ids.tolist()]
    return AttachContext(shape.task_type, shape.heads, steps, lambda: rows, batches, loss)
