"""Linear probing: trains only the task's output layer."""

from __future__ import annotations

from torch import nn

from bakeoff.methods.base_parameters import BaseParametersHook
from bakeoff.methods.hook import AttachContext


class Head(BaseParametersHook):
    """Trains only the task's newly initialised output layer."""

    nothing_found = "this task adds no output layer of its own to the base"

    def select_parameters(self, base: nn.Module, context: AttachContext) -> list[nn.Parameter]:
        """Return the task head's parameters."""
        heads = set(context.heads)
        return [p for n, p in base.named_parameters() if set(n.split(".")) & heads]


HOOK = Head
