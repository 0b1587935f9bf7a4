"""FourierFT: the dense spectrum is built out of place.

``peft/tuners/fourierft/layer.py:99`` (``FourierFTLayer.get_delta_weight``) writes the trained
coefficients into ``torch.zeros`` (``dense_spectrum[rows, cols] = spectrum``). Under vmap the
written tensor has no lane dimension, so the lanes' values do not fit. Fix upstream:
``scatter``. The indices are in a plain dict, so every forward pass would copy them to the device;
as buffers they move with the module.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor


def on_install(self: Any) -> None:
    """Register the coefficients' indices as buffers."""
    self.indices = BufferDict(self.indices, persistent=False)


def get_delta_weight(self: Any, adapter: str) -> Tensor:
    """Return the inverse Fourier transform of the adapter's coefficients."""
    spectrum = self.fourierft_spectrum[adapter]
    rows, columns = self.indices[adapter].to(spectrum.device)
    flat = torch.zeros(self.out_features * self.in_features, device=spectrum.device)
    dense = flat.scatter(0, rows * self.in_features + columns, spectrum.float())
    dense = dense.view(self.out_features, self.in_features)
    delta: Tensor = torch.fft.ifft2(dense).real * self.fourierft_scaling[adapter]
    return delta.to(spectrum.dtype)


_OWNER = "peft.tuners.fourierft.layer.FourierFTLayer"
PATCHES = {f"{_OWNER}.get_delta_weight": get_delta_weight, f"{_OWNER}.on_install": on_install}
