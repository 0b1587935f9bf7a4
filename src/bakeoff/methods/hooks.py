"""How a method gets onto a base: plain PEFT for most, a small hook for the few that need code.

Called by ``assemble``; the training loop only ever sees the ``Hook`` protocol and never names a
method. A hook answers four questions: how to attach, which penalty to add to the loss, what to do
after a step, what to save.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import peft
import peft.tuners.boft.layer as boft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bakeoff.errors import PreflightError, near_match, unknown
from bakeoff.trial import MethodEntry

ALL_NORMS = "all-norms"
# PEFT tries to build a CUDA extension as soon as BOFT is attached: minutes, with a compiler or
# without. Answered beforehand, it takes its own plain formula everywhere.
boft._FBD_CUDA = False


class Incompatible(Exception):
    """This method cannot be attached to this base or task; the message is the reason."""


class Hook:
    """A plain PEFT method: its config class and arguments are all it takes."""

    saved_as: ClassVar[str] = "adapter"

    def __init__(self, entry: MethodEntry, config: dict[str, Any]) -> None:
        self.entry = entry
        self.config = config

    def attach(self, base: nn.Module, task_type: str, heads: Sequence[str]) -> nn.Module:
        """Wrap ``base`` so that exactly the method's parameters require gradients.

        Raises:
            PreflightError: ``unknown-config-key``, ``target-modules-not-found``.
            Incompatible: PEFT refuses this base.
        """
        arguments = self._arguments(base)
        try:
            config = config_class(self.entry)(task_type=task_type, **arguments)
            model: nn.Module = peft.get_peft_model(base, config)
        except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as error:
            raise Incompatible(f"PEFT refuses: {error}") from error
        return model

    def _arguments(self, base: nn.Module) -> dict[str, Any]:
        check_config(self.entry, self.config)
        arguments = dict(self.config)
        targets = arguments.get("target_modules")
        if targets == ALL_NORMS:
            arguments["target_modules"] = norm_modules(base)
            # PEFT warns of every layer class outside its list; that it wraps norms rightly is what
            # the contract tests show
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            if not arguments["target_modules"]:
                raise Incompatible("the base has no norm layers")
        elif isinstance(targets, list):
            check_targets(self.entry.name, base, targets)
        return arguments

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return a term to add to the loss, or None."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Act between the optimizer's step and the next forward pass."""

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Write what a user needs beside the base to run this model."""
        for config in model.peft_config.values():
            config.base_model_name_or_path = base_name
        # save_embedding_layers=False: "auto" would ask the hub whether the vocabulary grew
        model.save_pretrained(str(folder), save_embedding_layers=False)


class Full(Hook):
    """Every weight of the base is trained; saved as a whole model."""

    saved_as = "model"

    def attach(self, base: nn.Module, task_type: str, heads: Sequence[str]) -> nn.Module:
        """Let every parameter require gradients."""
        base.requires_grad_(True)
        return base

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Write the whole model in safetensors."""
        model.save_pretrained(str(folder))


class Head(Hook):
    """Only the task's freshly initialised output layer is trained: the linear-probe baseline."""

    saved_as = "head"

    def attach(self, base: nn.Module, task_type: str, heads: Sequence[str]) -> nn.Module:
        """Let the task head alone require gradients."""
        names = [n for n in heads if hasattr(base, n)]
        if not names:
            raise Incompatible("this task adds no output layer of its own to the base")
        getattr(base, names[0]).requires_grad_(True)
        return base

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Write the head's tensors under their names in the model."""
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "model.safetensors")


HOOKS: dict[str, type[Hook]] = {"full": Full, "head": Head}


def make(entry: MethodEntry, config: dict[str, Any]) -> Hook:
    """Return the hook that attaches ``entry`` with these arguments."""
    if entry.hook is None:
        return Hook(entry, config)
    if entry.hook not in HOOKS:
        raise unknown("unknown-hook", "hook", entry.hook, HOOKS)
    return HOOKS[entry.hook](entry, config)


def config_class(entry: MethodEntry) -> type[peft.PeftConfig]:
    """Return the PEFT config class that a method names.

    Raises:
        UsageError: ``unknown-peft-config`` with the near match.
    """
    known = [n for n in dir(peft) if n.endswith("Config")]
    if entry.peft not in known:
        raise unknown("unknown-peft-config", "PEFT config class", str(entry.peft), known)
    found: type[peft.PeftConfig] = getattr(peft, str(entry.peft))
    return found


def check_config(entry: MethodEntry, config: dict[str, Any]) -> None:
    """Refuse arguments that the method does not take.

    Raises:
        PreflightError: ``unknown-config-key`` with the near match.
    """
    known = (
        {f.name for f in dataclasses.fields(config_class(entry))} if entry.hook is None else set()
    )
    for key in config:
        if key not in known:
            near = near_match(key, known)
            raise PreflightError(
                "unknown-config-key",
                f"{entry.title} takes no argument '{key}'.",
                f"did you mean '{near}'?" if near else f"remove it from [method.{entry.name}].",
            )


def check_targets(method: str, base: nn.Module, targets: list[str]) -> None:
    """Refuse target names that match no module of the base (PEFT: equal, or a dotted suffix).

    Raises:
        PreflightError: ``target-modules-not-found``, listing the base's real names.
    """
    modules = [n for n, _ in base.named_modules() if n]
    missing = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in modules)]
    if missing:
        linear = [n for n, m in base.named_modules() if isinstance(m, nn.Linear)]
        leaves = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise PreflightError(
            "target-modules-not-found",
            f"[method.{method}] targets {missing}, which the base does not have.",
            f"its linear layers are: {', '.join(leaves)}; or target_modules = 'all-linear'.",
        )


def norm_modules(base: nn.Module) -> list[str]:
    """Return the full names of all layers of a norm class (LayerNorm, RMSNorm and kin)."""
    return [
        name
        for name, module in base.named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())
    ]


def trainable(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
