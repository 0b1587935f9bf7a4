"""The base model that a worker keeps loaded from one job to the next.

A job gets a copy of the modules on the same tensors: a method that replaces tensors (PiSSA, full
fine-tuning in another precision) does not affect the kept ones. Checksums verify at each request
that nothing was written into them; if something was, the base is loaded again.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from bakeoff.engine.quantization import is_packed, mixes_rows


class BaseCache:
    """Keeps at most one base model."""

    def __init__(self) -> None:
        self._entry: _CachedBase | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no base is kept."""
        return self._entry is None

    def get(self, key: Hashable, load: Callable[[], nn.Module]) -> nn.Module:
        """Return a copy of the base with this key, loading it if it is not kept."""
        if self._entry is None or self._entry.key != key or not self._entry.is_intact():
            self.clear()  # first, so that two bases are never in memory at once
            model = load()
            if mixes_rows(model):  # such layers hold tensors outside their parameters
                return model
            self._entry = _CachedBase(key, model)
        return self._entry.copy()

    def clear(self) -> None:
        """Drop the base."""
        self._entry = None

    def release_if_replaced(self) -> None:
        """Drop the base if the last copy no longer uses its tensors.

        A method that changes the base would otherwise need twice the memory.
        """
        if self._entry is not None and not self._entry.is_shared():
            self.clear()


_active: ContextVar[BaseCache | None] = ContextVar("base_cache", default=None)


@contextlib.contextmanager
def cache_base() -> Iterator[BaseCache]:
    """Keep the base loaded between the jobs in the block."""
    cache = BaseCache()
    token = _active.set(cache)
    try:
        yield cache
    finally:
        _active.reset(token)


def load_cached(key: Hashable, load: Callable[[], nn.Module]) -> nn.Module:
    """Return the base with this key from the active cache; without a cache, load it."""
    cache = _active.get()
    return load() if cache is None else cache.get(key, load)


def release_if_replaced() -> None:
    """Drop the base of the active cache if the last copy no longer uses its tensors."""
    cache = _active.get()
    if cache is not None:
        cache.release_if_replaced()


class _CachedBase:
    """A loaded base with the checksums of its tensors."""

    def __init__(self, key: Hashable, model: nn.Module) -> None:
        self.key = key
        self.model = model
        self.sums = self._checksums()
        self.last_copy: list[tuple[Tensor, weakref.ref[Tensor]]] = []
        """The kept parameters, each with its counterpart in the last copy."""

    def copy(self) -> nn.Module:
        """Return a copy of the modules on the same tensors."""
        kept = {id(p): p for p in self.model.parameters()}
        new = {i: p if is_packed(p) else nn.Parameter(p.detach(), False) for i, p in kept.items()}
        self.last_copy = [(p, weakref.ref(new[i])) for i, p in kept.items() if not is_packed(p)]
        copied: nn.Module = copy.deepcopy(self.model, {**new})
        return copied

    def is_shared(self) -> bool:
        """Return whether the last copy still uses these tensors."""
        pairs = ((p, reference()) for p, reference in self.last_copy)
        return all(x is not None and x.data_ptr() == p.data_ptr() for p, x in pairs)

    def is_intact(self) -> bool:
        """Return whether every tensor has the bits that it had when it was loaded."""
        return self.sums == self._checksums()

    @torch.no_grad()
    def _checksums(self) -> list[int]:
        sums = [_bit_sum(p) for p in self.model.parameters()]
        return torch.stack(sums).tolist() if sums else []


def _bit_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bytes modulo 2^64, taken as 64-bit integers where possible."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    wide = raw[: len(raw) // 8 * 8].view(torch.int64).sum()
    return wide + raw[len(raw) // 8 * 8 :].sum()
