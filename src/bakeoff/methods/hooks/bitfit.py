"""BitFit: trains the bias terms of the base, and the task's head if there is one."""

from __future__ import annotations

from torch import nn

from bakeoff.methods.base_parameters import BaseParametersHook
from bakeoff.methods.hook import AttachContext


class BitFit(BaseParametersHook):
    """Trains the base's bias terms (arXiv 2106.10199)."""

    nothing_found = "the base has no bias terms"

    def select_parameters(self, base: nn.Module, context: AttachContext) -> list[nn.Parameter]:
        """Return all biases, and the weights of the task's head, which every method trains."""
        heads = set(context.heads)
        of_base = {n: p for n, p in base.named_parameters() if not set(n.split(".")) & heads}
        biases = [p for n, p in of_base.items() if n.rsplit(".", 1)[-1] == "bias"]
        if not biases:
            return []
        return biases + [p for n, p in base.named_parameters() if n not in of_base]


HOOK = BitFit
