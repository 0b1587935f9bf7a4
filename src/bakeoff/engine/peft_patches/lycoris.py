"""LoHa and LoKr: nothing is drawn for module dropout that is off.

``peft/tuners/loha/layer.py:241`` (``LoHaLayer.forward``) and, word for word the same,
``peft/tuners/lokr/layer.py:309`` (``LoKrLayer.forward``) branch on
``torch.rand(1) > module_dropout``: data-dependent control flow, which vmap does not
support. Fix upstream: draw only if the probability is above 0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Add the adapters' outputs to that of the base layer."""
    active = [a for a in self.active_adapters if a in self._available_adapters]
    if self.disable_adapters or self.merged or any(self.module_dropout[a] > 0 for a in active):
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    result = self.base_layer(x, *args, **kwargs)
    for adapter in active:
        result = result + self._get_delta_activations(adapter, x, *args, **kwargs)
    out: Tensor = result.to(x.dtype)
    return out


PATCHES = {
    "peft.tuners.loha.layer.LoHaLayer.forward": forward,
    "peft.tuners.lokr.layer.LoKrLayer.forward": forward,
}
