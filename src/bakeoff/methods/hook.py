"""The ``Hook`` of a method: how it attaches to a base, takes part in training steps, and is saved.

The default is plain PEFT; a few methods have a class in ``hooks/``. The training loop sees only
this interface and never a method's name. Subclasses override ``attach``, ``penalty``,
``precondition``, ``after_step`` or ``save``.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import peft
import torch
from torch import Tensor, nn

from bakeoff.core import plugins
from bakeoff.core.errors import UsageError, first_line
from bakeoff.core.trial import MethodEntry
from bakeoff.engine.batching import TokenizedExample
from bakeoff.engine.lanes.parameter_stack import ParameterStack
from bakeoff.engine.loop import StepHooks
from bakeoff.methods.arguments import Incompatible, RuleContext, config_class, resolve_arguments
from bakeoff.methods.boft_extension import disable_boft_extension

__all__ = [
    "AttachContext",
    "Hook",
    "Incompatible",
    "PenaltyHook",
    "SaveContext",
    "build_hook",
    "invert",
    "overrides",
    "step_extras",
    "trainable_parameters",
]

MAX_REASON = 1000
"""Longest text of PEFT's that a reason for an incompatible method quotes, in characters."""
CALIBRATION_EXAMPLES = 256
"""Training examples for data-driven initialisation: 256 in CorDA's paper and PEFT's docs."""

PEFT_ERRORS = (
    ValueError, TypeError, NotImplementedError, AttributeError, KeyError, IndexError, ImportError,
    AssertionError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""Exceptions that PEFT raises for unsupported bases and arguments."""


EXPECTED_WARNINGS = (
    # frozen random projections are restored from their seed; the contract tests reload every method
    "Specified to not save",
    # memory that data-driven initialisation could save on bases larger than the device
    "lora with eva initialization used with low_cpu_mem_usage",
)
"""Warnings of PEFT that are expected."""


class AttachContext(NamedTuple):
    """The study as a method sees it when it is attached.

    ``examples`` returns the training examples. For data-driven initialisation, ``batches(n)``
    yields ``CALIBRATION_EXAMPLES`` of them in padded batches of n, the same for every trial of the
    study, and ``loss`` maps (model, batch) to a mean loss.
    """

    task_type: str
    heads: Sequence[str]
    steps: int
    examples: Callable[[], Sequence[TokenizedExample]]
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]


class SaveContext(NamedTuple):
    """A trial as ``save`` sees it.

    ``base_name`` is the base's public name, ``start`` the trained tensors before the first step, if
    the hook ``needs_start``.
    """

    base_name: str
    lane: int
    start: Mapping[str, Tensor] | None


Ground, Finished = AttachContext, SaveContext
"""Former names, for hooks that import them."""


class Hook:
    """A plain PEFT method, defined by its config class and arguments."""

    saved_as: ClassVar[str] = "adapter"
    """Format of its files: ``adapter`` (PEFT), ``tensors`` (some of the base's) or ``model``."""
    needs_start: ClassVar[bool] = False
    """Whether ``save`` needs the trained tensors as they were before the first step."""

    def __init__(self, entry: MethodEntry, config: dict[str, Any]) -> None:
        self.entry = entry
        self.config = config

    def attach(self, base: nn.Module, context: AttachContext) -> nn.Module:
        """Wrap ``base`` so that exactly the method's parameters require gradients.

        Raises:
            PreflightError: ``unknown-config-key``, ``target-modules-not-found``.
            Incompatible: PEFT refuses this base.
        """
        if self.entry.needs is not None:
            raise Incompatible(self.entry.needs)
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message, UserWarning)
        config = self.peft_config(base, context)
        try:
            with disable_boft_extension():
                model = self.inject(base, config, context)
        except PEFT_ERRORS as error:
            if "out of memory" in str(error):
                raise
            raise Incompatible(
                f"PEFT refuses: {first_line(error, MAX_REASON, with_type=False)}"
            ) from error
        trained = {part for name in trainable_parameters(model) for part in name.split(".")}
        present = {part for name, _ in base.named_modules() for part in name.split(".")}
        if any(head in present and head not in trained for head in context.heads):
            raise Incompatible("PEFT does not train the task's output layer beside it")
        return model

    def peft_config(self, base: nn.Module, context: AttachContext) -> peft.PeftConfig:
        """Return PEFT's config with the method's arguments resolved for this base."""
        rules = RuleContext(base, context.heads, context.steps, context.examples)
        arguments = resolve_arguments(self.entry, self.config, rules)
        try:
            return config_class(self.entry)(task_type=context.task_type, **arguments)
        except PEFT_ERRORS as error:
            raise Incompatible(
                f"PEFT refuses: {first_line(error, MAX_REASON, with_type=False)}"
            ) from error

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Put the method's layers into ``base`` and initialise them."""
        model: nn.Module = peft.get_peft_model(base, config)
        return model

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return a term to add to the loss, or None."""
        return None

    def precondition(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return new gradients, by name, for the tensors whose gradient the method changes.

        ``values`` are the tensors of one trial, trained and frozen. Must be pure: it runs under
        ``vmap``.
        """
        return {}

    def after_step(self, model: nn.Module, step: int, lane: int) -> None:
        """Change one trial's model after optimizer step ``step`` (from 0)."""

    def after_lanes_step(self, stack: ParameterStack, step: int) -> None:
        """Change the tensors of all trials in place after optimizer step ``step`` (from 0)."""

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return the state that these two keep for one trial, for its checkpoint."""
        return {}

    def restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state``."""

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the files that a user needs, in addition to the base, to run this model."""
        for config in model.peft_config.values():
            config.base_model_name_or_path = trial.base_name
        # save_embedding_layers=False: "auto" would query the hub for the size of the vocabulary
        model.save_pretrained(str(folder), save_embedding_layers=False)


def step_extras(hook: Hook) -> StepHooks:
    """Return the hook's methods for a training step, as far as its class overrides them."""
    return StepHooks(*(getattr(hook, n) if overrides(hook, n) else None for n in StepHooks._fields))


def overrides(hook: Hook, *names: str) -> bool:
    """Return whether the hook's class has its own version of any of these methods."""
    return any(getattr(type(hook), name) is not getattr(Hook, name) for name in names)


def invert(matrix: Tensor) -> Tensor:
    """Return the inverse of a small well-conditioned matrix ``[r, r]`` without a host sync.

    Inverted twice, as a batch: the CUDA routine for a single matrix cannot be captured in a graph.
    """
    inverse: Tensor = torch.linalg.inv_ex(matrix.expand(2, *matrix.shape)).inverse[0]
    return inverse


class PenaltyHook(Hook):
    """A method whose PEFT model has a regularisation term to add to the loss."""

    term: ClassVar[str]
    """Name of the method of PEFT's model that computes it."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return PEFT's regularisation term."""
        term: Tensor = getattr(model.base_model, self.term)()
        return term


def build_hook(entry: MethodEntry, config: dict[str, Any]) -> Hook:
    """Return the hook of ``entry`` with these arguments.

    ``entry.hook`` is the name of a module in ``hooks/``, or ``package.module:Class`` for a class of
    the user's.

    Raises:
        UsageError: ``unknown-hook``.
    """
    if entry.hook is None:
        return Hook(entry, config)
    if ":" in entry.hook:
        return _load_user_class(entry.hook)(entry, config)
    hook_class: type[Hook] = plugins.load_plugin("methods.hooks", entry.hook, "hook").HOOK
    return hook_class(entry, config)


def _load_user_class(name: str) -> type[Hook]:
    """Import the user's class ``package.module:Class``, which must be a subclass of ``Hook``.

    Raises:
        UsageError: ``unknown-hook``.
    """
    module, _, class_name = name.partition(":")
    hint = "`package.module:Class`, a class of an installed package that inherits from Hook."
    if module.partition(".")[0] in sys.stdlib_module_names:
        cause = f"The hook '{name}' is in Python's standard library, which has no hooks."
        raise UsageError("unknown-hook", cause, hint)
    try:
        hook_class = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        cause = f"The hook '{name}' cannot be imported: {error}."
        raise UsageError("unknown-hook", cause, hint) from error
    if not (isinstance(hook_class, type) and issubclass(hook_class, Hook)):
        raise UsageError("unknown-hook", f"'{name}' is not a subclass of Hook.", hint)
    return hook_class


def trainable_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
