"""C3A: the block-circular convolution as plain operations.

``peft/tuners/c3a/layer.py:198`` (``C3ALinear.forward``) calls ``BlockCircularConvolution``
(``c3a/utils.py:28``), an ``autograd.Function`` without ``setup_context``, which functorch refuses.
Fix upstream: the plain formula, with autograd's backward.

That would also fix ``BlockCircularConvolution.backward``: ``utils.py:46`` takes ``fft`` of the
incoming gradient where the adjoint of ``fft`` is ``ifft``, so the gradient with respect to ``x``
(not the kernel) is that of the output reversed within its blocks. That is reproduced here: a trial
must train as PEFT trains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fft import fft, ifft


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Return the block-circular convolution of ``[..., n * b]`` with kernels ``[m, n, b]``."""
    _, blocks, size = kernel.shape
    waves, filters = ifft(x.reshape(*x.shape[:-1], blocks, size)), fft(kernel)
    mix = "...nb,mnb->...mb"
    out: Tensor = fft(torch.einsum(mix, waves.detach(), filters)).real
    # its value is 0: it only carries PEFT's gradient to x
    back: Tensor = fft(torch.einsum(mix, waves, filters.detach())).real
    back = back.flip(-1).roll(1, -1)
    return (out + (back - back.detach())).flatten(-2)


def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Add the adapters' convolutions to the base layer's output."""
    if self.disable_adapters or self.merged:
        own: Tensor = self.original_class.forward(self, x, *args, **kwargs)
        return own
    dtype = x.dtype
    result = self.base_layer(x, *args, **kwargs)
    x = x.to(torch.float32)
    for adapter in self.active_adapters:
        if adapter in self.c3a_kernel:
            x = convolve(x, self.c3a_kernel[adapter].to(torch.float32)) / x.size(-1)
            result = result + x.to(result.dtype)
    out: Tensor = result.to(dtype)
    return out


PATCHES = {"peft.tuners.c3a.layer.C3ALinear.forward": forward}
