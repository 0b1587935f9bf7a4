"""Stepping out of vmap: what lanes compute together, on plain tensors ``[K, ...]``, and back in.

What ``torch.autograd.Function`` with a ``vmap`` rule would do, in a fifth of its time. Used by
``units`` for frozen parts and by ``linear`` for matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

_functorch: Any = torch._C._functorch


def is_batched(value: object) -> bool:
    """Say whether a value is a tensor of which vmap shows one lane."""
    return isinstance(value, Tensor) and bool(_functorch.is_batchedtensor(value))


def call_outside_vmap(
    call: Callable[[Sequence[Tensor]], Sequence[Tensor]], given: Sequence[Tensor]
) -> list[Tensor]:
    """Return what ``call`` makes of all lanes ``[K, ...]`` of laned tensors, as laned tensors."""
    level = _functorch.maybe_get_level(given[0])
    stacked = [_functorch.get_unwrapped(x).movedim(_functorch.maybe_get_bdim(x), 0) for x in given]
    with temporarily_pop_interpreter_stack():
        out = call(stacked)
    return [_functorch._add_batch_dim(x, 0, level) for x in out]
