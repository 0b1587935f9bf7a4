"""BitFit: the bias terms of the base, and the task's output layer where there is one."""

from __future__ import annotations

from torch import nn

from bakeoff.methods.base_parameters import BaseParametersHook
from bakeoff.methods.hook import AttachContext


class BitFit(BaseParametersHook):
    """The bias terms that the base has are trained (arXiv 2106.10199)."""

    nothing = "the base has no bias terms"

    def chosen(self, base: nn.Module, ground: AttachContext) -> list[nn.Parameter]:
        """Return all biases, and the task head's weights: every method trains that layer."""
        heads = set(ground.heads)
        own = {n: p for n, p in base.named_parameters() if not set(n.split(".")) & heads}
        biases = [p for n, p in own.items() if n.rsplit(".", 1)[-1] == "bias"]
        if not biases:
            return []
        return biases + [p for n, p in base.named_parameters() if n not in own]


HOOK = BitFit
