"""A method attached to a tiny base and trained for a few steps, by its own hook.

The plain loop of the probe: AdamW at the entry's rates with the hook's penalty, preconditioning
and act after a step; what the engine does beyond that is tried in ``riding``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bakeoff.core.trial import MethodEntry
from bakeoff.engine import peft_patches
from bakeoff.methods.arguments import RuleContext, resolve_arguments
from bakeoff.methods.hook import Hook, Incompatible, build_hook, trainable_parameters
from bakeoff.tasks._base import Batch
from bakeoff.training.preflight.capabilities import tiny

STEPS = 8
CLIP = 1.0


class ProbeFailed(Exception):
    """The method attached and then did not train as it must; the message says how."""


class TrainedModel(NamedTuple):
    """A method after a few steps on a base of ``kind``; ``start`` holds its tensors before them.

    ``untouched``, ``before`` and ``after`` are the logits of the base, of the method before its
    first step and after its last.
    """

    hook: Hook
    kind: str
    model: Any
    start: dict[str, Tensor]
    untouched: Tensor
    before: Tensor
    after: Tensor


def train(entry: MethodEntry, config: dict[str, Any], kind: str, base: Any) -> TrainedModel:
    """Attach ``entry`` to ``base`` and train it for a few steps.

    Raises:
        Incompatible: it cannot be put on this base.
        Broken: nothing moved, a frozen tensor did, or the loss is not finite.
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
    for step in range(STEPS):
        model.train()
        # methods may draw noise: the same at each probe
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


def _drop_graph(model: Any, kind: str) -> None:
    """Run once more without a graph: what layers keep of their last pass can then be copied."""
    model.train()
    with torch.no_grad():
        tiny.logits(model, next(tiny.batches(kind, tiny.ROWS)))


@functools.cache
def base_logits(kind: str) -> Tensor:
    """Return the logits of a plain base; one that is quantised may not run before it is attached.

    bitsandbytes moves its scales at the first pass, and PEFT then looks for them in vain.
    """
    return logits(tiny.base(kind), kind)


def resolve_config(entry: MethodEntry) -> dict[str, Any]:
    """Return an entry's arguments with the rules among them resolved on the plain Llama.

    For models whose own layers say too little: one layer alone, or packed weights.
    """
    ground = tiny.attach_context("llama", STEPS)
    around = RuleContext(tiny.base("llama"), ground.heads, ground.steps, ground.examples)
    found = resolve_arguments(entry, entry.config, around) if entry.peft else {}
    return {k: found[k] if isinstance(v, str) else v for k, v in entry.config.items()}


def _dense(tensor: Tensor) -> Tensor:
    """Return what a quantised tensor of torchao's stands for, which it cannot be compared by."""
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
    """Return the norm of the difference over the norm of ``other``."""
    return round_finite((one - other).norm() / other.norm())


def round_finite(figure: Tensor) -> float:
    """Return a figure with two digits: the third is another on another machine.

    Raises:
        Broken: it is not finite, which JSON cannot say.
    """
    if not torch.isfinite(figure):
        raise ProbeFailed(f"its logits are {figure.item()}")
    return float(f"{figure.item():.2g}")
