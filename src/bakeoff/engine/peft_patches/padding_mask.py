"""Models whose layers average over tokens: the attention mask is noted for them.

``peft/tuners/tuners_utils.py`` (``BaseTuner.forward``) passes the mask to the base, which does not
pass it to its linear layers. Lily's and VeLoRA's layers average over their tokens and need it.
"""

from __future__ import annotations

from typing import Any

from bakeoff.engine.packing.tokens import PaddingMask


def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Note the mask, then run PEFT's own forward pass."""
    PaddingMask.mask = kwargs.get("attention_mask")
    return self.original_class.forward(self, *args, **kwargs)


PATCHES = {
    "peft.tuners.lily.model.LilyModel.forward": forward,
    "peft.tuners.lora.model.LoraModel.forward": forward,
}
