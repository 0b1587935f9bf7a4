"""Shadow: the object that its layers pass on is registered with PyTorch's pytrees.

``peft/tuners/shadow/layers.py:51``: ``ShadowLayer.forward`` takes and returns the hidden and the
shadow states in a ``ShadowCarrier``, an object that ``torch.utils._pytree`` treats as a leaf, so
vmap cannot see the tensors inside. Fix upstream: register the class.
"""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree


def on_install(self: Any) -> None:
    """Register the carrier class, once per process."""
    from peft.tuners.shadow.layers import ShadowCarrier

    if ShadowCarrier not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(
            ShadowCarrier,
            lambda carrier: ([carrier.hidden, carrier.shadow], None),
            lambda children, _: ShadowCarrier(*children),
        )


PATCHES = {"peft.tuners.shadow.layers.ShadowLayer.on_install": on_install}
