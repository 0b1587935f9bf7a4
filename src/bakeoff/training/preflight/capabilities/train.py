"""Attach a method to a tiny base and train it for a few steps with its hook.

A plain training loop: AdamW with the entry's learning rates and the hook's penalty, preconditioning
and step callback. The engine's accelerators are probed in ``accelerators``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bakeoff.core.trial import MethodEntry
from bakeoff.engine import peft_patches
from bakeoff.engine.lanes.parameter_stack import ParameterStack
from bakeoff.methods.arguments import RuleContext, resolve_arguments
from bakeoff.methods.hook import (
    Hook,
    Incompatible,
    build_hook,
    step_extras,
    trainable_parameters,
)
from bakeoff.tasks._base import Batch
from bakeoff.training.preflight.capabilities import tiny

STEPS = 8
CLIP = 1.0


class ProbeFailed(Exception):
    """The method was attached and did not train correctly; the message is the reason."""


class TrainedModel(NamedTuple):
    """A method after a few steps on a base of ``kind``.

    ``start`` holds its tensors before the first step. ``base_logits``, ``before`` and ``after`` are
    the logits of the base model, and of the method before its first and after its last step.
    """

    hook: Hook
    kind: str
    model: Any
    start: dict[str, Tensor]
    base_logits: Tensor
    before: Tensor
    after: Tensor


def train(entry: MethodEntry, config: dict[str, Any], kind: str, base: Any) -> TrainedModel:
    """Attach ``entry`` to ``base`` and train it for a few steps.

    Raises:
        Incompatible: it cannot be attached to this base.
        ProbeFailed: no trained tensor changed, a frozen one did, or the loss is not finite.
    """
    hook = build_hook(entry, config)
    torch.manual_seed(0)
    model: Any = hook.attach(base, tiny.attach_context(kind, STEPS))
    peft_patches.install_patches(model)
    start = {n: p.detach().clone() for n, p in trainable_parameters(model).items()}
    if not start:
        raise Incompatible("the method attached to nothing: no parameter would be trained")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = logits(model, kind)
    _train_steps(entry, hook, model, kind)
    now = dict(model.named_parameters())
    if all(torch.equal(now[n], was) for n, was in start.items()):
        raise ProbeFailed("no trained tensor moved")
    for name, was in frozen.items():
        if not torch.equal(_dense(now[name]), _dense(was)):
            raise ProbeFailed(f"{name} was frozen and changed")
    _drop_graph(model, kind)
    return TrainedModel(hook, kind, model, start, base_logits(kind), before, logits(model, kind))


def _train_steps(entry: MethodEntry, hook: Hook, model: Any, kind: str) -> None:
    trained = trainable_parameters(model)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        factor = next((f for part, f in entry.rates.items() if part in name), 1.0)
        groups.setdefault(factor, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": of, "lr": factor * entry.learning_rate} for factor, of in groups.items()],
        weight_decay=0.0,
    )
    source = _cycle_batches(kind)
    stack = ParameterStack([trained], [list(trained)], "cpu")
    for step in range(STEPS):
        model.train()
        # methods may draw random numbers: they must be the same in each probe
        torch.manual_seed(step)
        loss = tiny.loss(model, next(source))
        extra = hook.penalty(model)
        total = loss if extra is None else loss + extra
        if not torch.isfinite(total):
            raise ProbeFailed(f"the loss is {total.item()} at step {step}")
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.values(), CLIP)
        _precondition(hook, model, trained)
        optimizer.step()
        hook.after_step(model, step, 0)
        _run_after_lanes_step(hook, stack, trained, step)


@torch.no_grad()
def _run_after_lanes_step(
    hook: Hook, stack: ParameterStack, trained: Mapping[str, nn.Parameter], step: int
) -> None:
    """Let the hook change the trained tensors as those of a single lane."""
    change = step_extras(hook).after_lanes_step
    if change is None:
        return
    for name, parameter in trained.items():
        stack.tensor(name)[0].copy_(parameter)
        if parameter.grad is not None:
            stack.gradient(name)[0].copy_(parameter.grad)
    change(stack, step)
    for name, parameter in trained.items():
        parameter.copy_(stack.tensor(name)[0])


def _drop_graph(model: Any, kind: str) -> None:
    """Run once without autograd: some layers keep outputs, which cannot be copied with a graph."""
    model.train()
    with torch.no_grad():
        tiny.logits(model, next(tiny.batches(kind, tiny.ROWS)))


@functools.cache
def base_logits(kind: str) -> Tensor:
    """Return the logits of the plain base, which stand for those of a quantised one.

    A quantised base must not run before the method is attached: bitsandbytes moves its scales in
    the first pass, and PEFT does not find them afterwards.
    """
    return logits(tiny.base(kind), kind)


def resolve_config(entry: MethodEntry) -> dict[str, Any]:
    """Return an entry's arguments, with those that depend on the base resolved on the plain Llama.

    For models on which they cannot be resolved: those of one layer, or with packed weights.
    """
    ground = tiny.attach_context("llama", STEPS)
    around = RuleContext(tiny.base("llama"), ground.heads, ground.steps, ground.examples)
    found = resolve_arguments(entry, entry.config, around) if entry.peft else {}
    return {k: found[k] if isinstance(v, str) else v for k, v in entry.config.items()}


def _dense(tensor: Tensor) -> Tensor:
    """Return a tensor that can be compared: torchao's quantised tensors cannot."""
    packed: bool = is_traceable_wrapper_subclass(tensor)
    return tensor.dequantize() if packed else tensor


def _cycle_batches(kind: str) -> Iterator[Batch]:
    while True:
        yield from tiny.batches(kind, tiny.ROWS)


def _precondition(hook: Hook, model: Any, trained: dict[str, nn.Parameter]) -> None:
    values = {n: p.detach() for n, p in model.named_parameters()}
    gradients = {n: p.grad for n, p in trained.items() if p.grad is not None}
    for name, gradient in hook.precondition(values, gradients).items():
        trained[name].grad = gradient.to(trained[name].dtype)


def logits(model: Any, kind: str) -> Tensor:
    """Return a model's logits on the first batch, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return tiny.logits(model, next(tiny.batches(kind, tiny.ROWS))).float()


def difference(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference divided by the norm of ``other``."""
    return round_finite((one - other).norm() / other.norm())


def round_finite(value: Tensor) -> float:
    """Return a number rounded to two significant digits: the third differs between machines.

    Raises:
        ProbeFailed: it is not finite, which JSON cannot represent.
    """
    if not torch.isfinite(value):
        raise ProbeFailed(f"its logits are {value.item()}")
    return float(f"{value.item():.2g}")
