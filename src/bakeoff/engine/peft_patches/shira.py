"""SHiRA: the sparse update is a dense matrix, added out of place; its indices are a buffer.

``peft/tuners/shira/layer.py:222`` (``Linear.get_delta_weight``) makes a ``sparse_coo_tensor``,
which has no batching rule, and ``Linear.forward`` adds it in place to a clone of the base weight,
which has no lane dimension. Fix upstream: ``scatter``, ``weight + delta``. The indices
(``shira_indices``) are in a plain dict, so a step would copy them to the device; as buffers they
move with the module.
"""

from __future__ import annotations

from typing import Any

from peft.tuners._buffer_dict import BufferDict
from torch import Tensor
from torch.nn import functional


def on_install(self: Any) -> None:
    """Register the indices of the trained entries as buffers (not saved: PEFT saves them)."""
    self.shira_indices = BufferDict(self.shira_indices, persistent=False)


def get_delta_weight(self: Any, adapter: str) -> Tensor:
    """Return the adapter's update, ``[out, in]``, zero where nothing is trained."""
    values = self.shira_weight[adapter] * self.scaling[adapter]
    rows, columns = self.shira_indices[adapter].to(values.device).long()
    flat = values.new_zeros(self.out_features * self.in_features)
    dense: Tensor = flat.scatter_add(0, rows * self.in_features + columns, values)
    return dense.view(self.out_features, self.in_features)


def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run the layer with the updates added to its weight."""
    if self.disable_adapters or self.merged:
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    deltas = [self.get_delta_weight(a) for a in self.active_adapters if a in self.shira_weight]
    if self.quantization_backend and not self.quantization_backend.supports_merge:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for delta in deltas:
            result = result + functional.linear(x, delta.to(result.dtype))
        return result
    weight: Tensor = self.get_base_weight()
    for delta in deltas:
        # in the base's dtype, as after adding in place
        weight = (weight + delta).to(weight.dtype)
    return functional.linear(x, weight, bias=self.base_layer.bias)


_OWNER = "peft.tuners.shira.layer.Linear"
PATCHES = {
    f"{_OWNER}.get_delta_weight": get_delta_weight,
    f"{_OWNER}.forward": forward,
    f"{_OWNER}.on_install": on_install,
}
