"""How a method gets onto a base: plain PEFT for most, a class in ``hooks/`` for a few.

Called by ``assemble``; the training loop only ever sees the ``Hook`` protocol and never names a
method. A hook answers five questions: how to attach, which penalty to add to the loss, how to
bend the gradients, what to do after a step, what to save.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import peft
import peft.tuners.boft.layer as boft
import torch
from torch import Tensor, nn

from bakeoff.core import plugins
from bakeoff.core.errors import UsageError, first_line
from bakeoff.core.trial import MethodEntry
from bakeoff.engine.loop import StepHooks
from bakeoff.methods.arguments import Incompatible, RuleContext, config_class, resolve_arguments

__all__ = [
    "SaveContext", "AttachContext", "Hook", "Incompatible", "PenaltyHook", "step_extras", "invert", "build_hook",
    "trainable_parameters",
]  # fmt: skip

MAX_REASON = 1000
"""Longest text of PEFT's that a reason for an incompatible method quotes, in characters."""
CALIBRATION_EXAMPLES = 256
"""How many training examples data-driven starts look at: CorDA's paper and PEFT's docs say 256."""

# PEFT tries to build a CUDA extension as soon as BOFT is attached: minutes, with a compiler or
# without. Answered beforehand, it takes its own plain formula everywhere.
boft._FBD_CUDA = False

PEFT_ERRORS = (
    ValueError, TypeError, NotImplementedError, AttributeError, KeyError, IndexError, ImportError,
    AssertionError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""What PEFT raises of bases and arguments that it cannot take; a user's interrupt is not in it."""


EXPECTED_WARNINGS = (
    # frozen random projections come back from their key: the contract tests reload every method
    "Specified to not save",
    # memory that data-driven starts could save on bases larger than the device
    "lora with eva initialization used with low_cpu_mem_usage",
)
"""What PEFT warns of that is meant so."""


class TokenizedExample(Protocol):
    """A tokenised training example."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its token ids."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """A label for each token (negative: not supervised), or its class alone."""
        ...


class AttachContext(NamedTuple):
    """What a method may know of its study when it is attached.

    ``examples`` returns the training examples; ``batches(n)`` yields ``CALIBRATION`` of them in
    padded batches of n, the same ones for every trial of the study, and ``loss`` maps (model,
    batch) to a mean loss: what methods start from that look at the data first.
    """

    task_type: str
    heads: Sequence[str]
    steps: int
    examples: Callable[[], Sequence[TokenizedExample]]
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]


class SaveContext(NamedTuple):
    """What ``save`` is told of a trial: the base's public name, its lane, its start if needed."""

    base_name: str
    lane: int
    start: Mapping[str, Tensor] | None


class Hook:
    """A plain PEFT method: its config class and arguments are all it takes."""

    saved_as: ClassVar[str] = "adapter"
    needs_start: ClassVar[bool] = False
    """Whether ``save`` needs the trained tensors as they were before the first step."""

    def __init__(self, entry: MethodEntry, config: dict[str, Any]) -> None:
        self.entry = entry
        self.config = config

    def attach(self, base: nn.Module, ground: AttachContext) -> nn.Module:
        """Wrap ``base`` so that exactly the method's parameters require gradients.

        Raises:
            PreflightError: ``unknown-config-key``, ``target-modules-not-found``.
            Incompatible: PEFT refuses this base.
        """
        if self.entry.needs is not None:
            raise Incompatible(self.entry.needs)
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message, UserWarning)
        config = self.peft_config(base, ground)
        try:
            model = self.inject(base, config, ground)
        except PEFT_ERRORS as error:
            if "out of memory" in str(error):
                raise
            raise Incompatible(
                f"PEFT refuses: {first_line(error, MAX_REASON, with_type=False)}"
            ) from error
        trained = [n for n in trainable_parameters(model) if set(n.split(".")) & set(ground.heads)]
        if not trained and any(hasattr(base, head) for head in ground.heads):
            raise Incompatible("PEFT does not train the task's output layer beside it")
        return model

    def peft_config(self, base: nn.Module, ground: AttachContext) -> peft.PeftConfig:
        """Return PEFT's config with the method's arguments resolved for this base."""
        around = RuleContext(base, ground.heads, ground.steps, ground.examples)
        arguments = resolve_arguments(self.entry, self.config, around)
        try:
            return config_class(self.entry)(task_type=ground.task_type, **arguments)
        except PEFT_ERRORS as error:
            raise Incompatible(
                f"PEFT refuses: {first_line(error, MAX_REASON, with_type=False)}"
            ) from error

    def inject(self, base: nn.Module, config: peft.PeftConfig, ground: AttachContext) -> nn.Module:
        """Put the method's layers into ``base`` and give them their start."""
        model: nn.Module = peft.get_peft_model(base, config)
        return model

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return a term to add to the loss, or None."""
        return None

    def precondition(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return new gradients, by name, for those tensors whose gradient the method bends.

        ``values`` are one trial's own tensors, trained and frozen; pure, called under ``vmap``.
        """
        return {}

    def after_step(self, model: nn.Module, step: int, lane: int) -> None:
        """Act on one trial's model after the optimizer's step ``step`` (from 0)."""

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return what ``after_step`` keeps of one trial beside its trained tensors."""
        return {}

    def restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` returned."""

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write what a user needs beside the base to run this model."""
        for config in model.peft_config.values():
            config.base_model_name_or_path = trial.base_name
        # save_embedding_layers=False: "auto" would ask the hub whether the vocabulary grew
        model.save_pretrained(str(folder), save_embedding_layers=False)


def step_extras(hook: Hook) -> StepHooks:
    """Return what a hook does in a step beside the loss: what its class overrides."""
    own = {n for n in StepHooks._fields if getattr(type(hook), n) is not getattr(Hook, n)}
    return StepHooks(*(getattr(hook, n) if n in own else None for n in StepHooks._fields))


def invert(matrix: Tensor) -> Tensor:
    """Return the inverse of a small well-conditioned matrix ``[r, r]``, without a look at the host.

    Twice, as a batch: a single one takes a CUDA routine that no graph can capture.
    """
    found: Tensor = torch.linalg.inv_ex(matrix.expand(2, *matrix.shape)).inverse[0]
    return found


class PenaltyHook(Hook):
    """A method whose PEFT model has a regularisation term that the loss must be given."""

    term: ClassVar[str]
    """The method of PEFT's model that computes it."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return PEFT's own term."""
        found: Tensor = getattr(model.base_model, self.term)()
        return found


def build_hook(entry: MethodEntry, config: dict[str, Any]) -> Hook:
    """Return the hook that attaches ``entry`` with these arguments.

    A name is a module of ``hooks/``; ``package.module:Class`` is the user's own.

    Raises:
        UsageError: ``unknown-hook``.
    """
    if entry.hook is None:
        return Hook(entry, config)
    if ":" in entry.hook:
        return _load_user_class(entry.hook)(entry, config)
    found: type[Hook] = plugins.load_plugin("methods.hooks", entry.hook, "hook").HOOK
    return found(entry, config)


def _load_user_class(named: str) -> type[Hook]:
    """Return the user's own class ``package.module:Class``: a ``Hook``, never a stray function.

    Raises:
        UsageError: ``unknown-hook``.
    """
    module, _, name = named.partition(":")
    hint = "`package.module:Class`, a class of an installed package that inherits from Hook."
    if module.partition(".")[0] in sys.stdlib_module_names:
        cause = f"The hook '{named}' is of Python's own library, which holds no hook."
        raise UsageError("unknown-hook", cause, hint)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError("unknown-hook", f"The hook '{named}': {error}.", hint) from error
    if not (isinstance(found, type) and issubclass(found, Hook)):
        raise UsageError("unknown-hook", f"The hook '{named}' is no Hook.", hint)
    return found


def trainable_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
