"""DoRA: a weight that is not quantised is used directly.

``peft/utils/integrations.py:90`` (``dequantize_module_weight``, called by
``DoraLinearLayer.forward``, ``peft/tuners/lora/dora.py:151``) evaluates
``type(module.weight).__module__.startswith("torchao.")``. That works under vmap, but
``torch.compile`` cannot trace it and breaks the graph. Fix upstream: check for the quantised
classes by name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def forward(
    self: Any, x: Tensor, *, base_layer: nn.Module, base_result: Tensor | None = None, **parts: Any
) -> Tensor:
    """Return the contribution of the low-rank update and magnitudes to the layer's output.

    ``parts`` are ``lora_A``, ``lora_B``, ``scaling`` and ``adapter_name``.
    """
    weight: Any = base_layer.weight
    if type(base_layer) is not nn.Linear or type(weight) not in (nn.Parameter, Tensor):
        own: Tensor = self.original_class.forward(
            self, x, base_layer=base_layer, base_result=base_result, **parts
        )
        return own
    a, b, scaling = parts["lora_A"], parts["lora_B"], parts["scaling"]
    name = parts.get("adapter_name", "default")
    weight = weight.to(x.dtype)
    update = self.get_lora_weight(lora_A=a, lora_B=b, adapter_name=name).to(x.dtype).detach()
    norm = self.get_weight_norm(
        weight=weight, lora_weight=update, scaling=scaling, adapter_name=name
    )
    scale = (self.weight / norm.detach()).view(1, -1)
    if base_result is None:
        base_result = functional.linear(x, weight.T if self.fan_in_fan_out else weight)
    elif base_layer.bias is not None:
        base_result = base_result - base_layer.bias
    result: Tensor = (scale - 1) * base_result + scale * b(a(x)) * scaling
    return result


PATCHES = {"peft.tuners.lora.dora.DoraLinearLayer.forward": forward}
