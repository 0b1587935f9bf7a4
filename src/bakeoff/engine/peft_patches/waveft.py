"""WaveFT: the padded dense spectrum is built out of place, and the filters are created once.

``peft/tuners/waveft/layer.py:165`` (``WaveFTLayer.get_delta_weight``) writes the trained
coefficients into ``torch.zeros`` (``dense_spectrum[rows, cols] = valid_spectrum``). Under vmap the
written tensor has no lane dimension, so the lanes' values do not fit; selecting them by a
boolean mask also reads the mask back from the device. Fix upstream: ``scatter``, then pad: the mask
never filters anything, since the coefficients are drawn within the unpadded matrix.

``waverec2d`` creates its filters from Python lists in every call, ``torch.compile`` cannot trace
``_coeff_tree_map``, and the coefficients' indices are in a plain dict. Here filters and indices are
buffers: nothing is copied to the device in a step.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor
from torch.nn import functional


def on_install(self: Any) -> None:
    """Register the coefficients' indices and the filters as buffers."""
    from peft.tuners.waveft.wavelet import Wavelet

    self.waveft_indices = BufferDict(self.waveft_indices, persistent=False)
    self.filters = BufferDict({}, persistent=False)
    for adapter, family in self.waveft_wavelet_family.items():
        wavelet = Wavelet(family)
        low, high = (
            torch.tensor(f, dtype=self.waveft_spectrum[adapter].dtype)
            for f in (wavelet.rec_lo, wavelet.rec_hi)
        )
        pairs = (low, low), (high, low), (low, high), (high, high)
        self.filters[adapter] = torch.stack([a[:, None] * b for a, b in pairs])[:, None]


def get_delta_weight(self: Any, adapter: str) -> Tensor:
    """Return the inverse wavelet transform of the adapter's coefficients, cropped to the layer."""
    from peft.tuners.waveft.constants import WAVELET_REDUCTIONS

    spectrum = self.waveft_spectrum[adapter]
    scaling = self.waveft_scaling[adapter]
    rows, columns = self.waveft_indices[adapter].to(spectrum.device)
    high, wide = self.out_features, self.in_features
    flat = spectrum.new_zeros(high * wide).scatter(0, rows * wide + columns, spectrum)
    dense = flat.view(high, wide)
    if not self.waveft_use_idwt[adapter]:
        plain: Tensor = dense * scaling
        return plain
    reductions = WAVELET_REDUCTIONS[self.waveft_wavelet_family[adapter]]
    more_rows = reductions[0] + (high + reductions[0]) % 2
    more_columns = reductions[1] + (wide + reductions[1]) % 2
    above, left = more_rows // 2, more_columns // 2
    dense = functional.pad(dense, (left, more_columns - left, above, more_rows - above))
    delta: Tensor = reconstruct(dense, self.filters[adapter].to(dense)) * scaling
    row, column = (delta.shape[0] - high) // 2, (delta.shape[1] - wide) // 2
    return delta[row : row + high, column : column + wide]


def reconstruct(dense: Tensor, filters: Tensor) -> Tensor:
    """Return the matrix whose one-level wavelet transform has these bands as quadrants."""
    high, wide = dense.shape[0] // 2, dense.shape[1] // 2
    # low, horizontal, vertical, diagonal: in the order of the filters
    bands = dense.view(2, high, 2, wide).transpose(1, 2).reshape(1, 4, high, wide)
    whole = functional.conv_transpose2d(bands, filters, stride=2)[0, 0]
    edge = (2 * filters.shape[-1] - 3) // 2
    return whole[edge : whole.shape[0] - edge, edge : whole.shape[1] - edge]


_OWNER = "peft.tuners.waveft.layer.WaveFTLayer"
PATCHES = {f"{_OWNER}.get_delta_weight": get_delta_weight, f"{_OWNER}.on_install": on_install}
