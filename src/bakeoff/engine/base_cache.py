"""The base that a worker keeps loaded from one segment to the next.

Used by ``assemble.load_base``; on in workers that stay (``worker``). What is handed out is a copy
of the modules on the same tensors: a method that puts other tensors in their place (PiSSA, full
fine-tuning in another precision) leaves them alone. That nothing was written into them is checked
by sums over their bits each time the base is asked for; if it was, the base is loaded anew.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from bakeoff.engine.quantization import is_packed, mixes_rows


class BaseCache:
    """The one base that this process keeps; off until a worker turns it on."""

    on: bool = False
    _kept: _CachedBase | None = None

    @classmethod
    def base(cls, key: Hashable, load: Callable[[], nn.Module]) -> nn.Module:
        """Return the base called ``key``: a copy of the one that is kept, else what is loaded."""
        if not cls.on:
            return load()
        if cls._kept is None or cls._kept.key != key or not cls._kept.intact():
            cls.forget()
            model = load()
            if mixes_rows(model):  # such layers hold tensors outside their parameters
                return model
            cls._kept = _CachedBase(key, model)
        return cls._kept.copy()

    @classmethod
    def forget(cls) -> None:
        """Let the base go."""
        cls._kept = None

    @classmethod
    def spare(cls) -> None:
        """Let the base go if the last copy has come to stand on tensors of its own.

        Where a method changes the base, keeping the old one beside it would take twice the memory.
        """
        if cls._kept is not None and not cls._kept.shared():
            cls.forget()


class _CachedBase:
    def __init__(self, key: Hashable, model: nn.Module) -> None:
        self.key = key
        self.model = model
        self.sums = self._sums()
        self.handed: list[tuple[Tensor, weakref.ref[Tensor]]] = []

    def copy(self) -> nn.Module:
        """Return the modules anew, on the same tensors."""
        own = {id(p): p for p in self.model.parameters()}
        new = {i: p if is_packed(p) else nn.Parameter(p.detach(), False) for i, p in own.items()}
        self.handed = [(p, weakref.ref(new[i])) for i, p in own.items() if not is_packed(p)]
        made: nn.Module = copy.deepcopy(self.model, {**new})
        return made

    def shared(self) -> bool:
        """Say whether the last copy still stands on these tensors."""
        found = ((p, handed()) for p, handed in self.handed)
        return all(x is not None and x.data_ptr() == p.data_ptr() for p, x in found)

    def intact(self) -> bool:
        """Say whether every tensor holds the bits that it held when it was loaded."""
        return self.sums == self._sums()

    @torch.no_grad()
    def _sums(self) -> list[int]:
        found = [_bit_sum(p) for p in self.model.parameters()]
        return torch.stack(found).tolist() if found else []


def _bit_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bytes, eight at a time where they come so, modulo 2^64."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    wide = raw[: len(raw) // 8 * 8].view(torch.int64).sum()
    return wide + raw[len(raw) // 8 * 8 :].sum()
