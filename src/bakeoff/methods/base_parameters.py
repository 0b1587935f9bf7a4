"""Methods that train some of the base's own tensors and no others: no PEFT, no new layers.

The base class of ``hooks/head`` and ``hooks/bitfit``; they only say which tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible, SaveContext


class BaseParametersHook(Hook):
    """Some of the base's own tensors are trained, and saved under their names in the model."""

    saved_as = "tensors"
    nothing: ClassVar[str]
    """Why the method is incompatible where it finds no tensor of its kind."""

    def chosen(self, base: nn.Module, ground: AttachContext) -> list[nn.Parameter]:
        """Return the parameters to train."""
        raise NotImplementedError

    def attach(self, base: nn.Module, ground: AttachContext) -> nn.Module:
        """Let the chosen parameters require gradients."""
        found = self.chosen(base, ground)
        if not found:
            raise Incompatible(self.nothing)
        for parameter in found:
            parameter.requires_grad_(True)
        return base

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the trained tensors under their names in the model."""
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "model.safetensors")
