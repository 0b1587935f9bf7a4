"""The task's output layer alone: the linear-probe baseline."""

from __future__ import annotations

from torch import nn

from bakeoff.methods.base_parameters import BaseParametersHook
from bakeoff.methods.hook import AttachContext


class Head(BaseParametersHook):
    """Only the task's freshly initialised output layer is trained."""

    nothing = "this task adds no output layer of its own to the base"

    def chosen(self, base: nn.Module, ground: AttachContext) -> list[nn.Parameter]:
        """Return the task head's parameters."""
        names = [n for n in ground.heads if hasattr(base, n)]
        return list(getattr(base, names[0]).parameters()) if names else []


HOOK = Head
