"""TinyLoRA: a layer holds its own vector only.

``peft/tuners/tinylora/layer.py:47`` (``TinyLoraLayer``) keeps a reference to the dictionary of all
layers' vectors, and looks its own up by a key. Each of n layers then has n trained tensors, which
vmap passes into every one of them, and no two layers look alike to the compiler. The model keeps
the dictionary of all, which PEFT saves. Fix upstream: pass the vector.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_OWN = "own"
"""Key of a layer's vector in its own dictionary: the same in every layer."""


def on_install(self: Any) -> None:
    """Replace the dictionary of all vectors by one of the layer's own."""
    own = {a: self.tinylora_v[a][key] for a, key in self._tinylora_v_key.items()}
    self.tinylora_v = nn.ModuleDict({a: nn.ParameterDict({_OWN: v}) for a, v in own.items()})
    self._tinylora_v_key = dict.fromkeys(own, _OWN)


PATCHES = {"peft.tuners.tinylora.layer.TinyLoraLayer.on_install": on_install}
