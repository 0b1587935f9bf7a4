"""Base class of methods that train a subset of the base's own tensors, without PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible, SaveContext


class BaseParametersHook(Hook):
    """A method that trains some of the base's tensors and saves them under their own names."""

    saved_as = "tensors"
    nothing_found: ClassVar[str]
    """The reason of incompatibility if the base has no such tensor."""

    def select_parameters(self, base: nn.Module, context: AttachContext) -> list[nn.Parameter]:
        """Return the parameters to train."""
        raise NotImplementedError

    def attach(self, base: nn.Module, context: AttachContext) -> nn.Module:
        """Let the selected parameters require gradients.

        Raises:
            Incompatible: the base has no such parameter.
        """
        selected = self.select_parameters(base, context)
        if not selected:
            raise Incompatible(self.nothing_found)
        for parameter in selected:
            parameter.requires_grad_(True)
        return base

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the trained tensors under their names in the model."""
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "model.safetensors")
