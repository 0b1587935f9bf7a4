"""The base model that a worker keeps loaded from one job to the next.

A job gets a copy of the modules on the same tensors: a method that replaces tensors (PiSSA, full
fine-tuning in another precision) does not affect the kept ones. Checksums verify at each request
that nothing was written into them; if something was, the base is loaded again.

New layers are drawn at random when a base is loaded. Their tensors are kept for each draw, so that
another seed's base is the kept one with a few other tensors.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.core.context import set_in_block
from bakeoff.engine.quantization import is_packed, mixes_rows

SMALL_BYTES = 1 << 30
"""Size of a base that stays loaded whatever a method replaces."""
MOST_REPLACED = 10
"""A larger base stays loaded while a method replaces at most one of so many of its bytes."""


class RandomLayers(NamedTuple):
    """The layers of a base that are drawn at random when it is loaded.

    ``draw`` is what they are drawn from, ``contains`` whether a parameter of this name is in them.
    ``redraw`` returns the base with this draw on the CPU, so that no second one is on the device;
    None: the base is loaded again for each draw.
    """

    draw: Hashable
    contains: Callable[[str], bool]
    redraw: Callable[[], nn.Module] | None


class BaseCache:
    """Keeps at most one base model."""

    def __init__(self) -> None:
        self._entry: _CachedBase | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no base is kept."""
        return self._entry is None

    @property
    def entry(self) -> object | None:
        """The kept base; another object once it was loaded again."""
        return self._entry

    def get(
        self, key: Hashable, load: Callable[[], nn.Module], random: RandomLayers | None = None
    ) -> nn.Module:
        """Return a copy of the base with this key, loading it if it is not kept."""
        entry = self._entry
        if entry is None or entry.key != key or not entry.is_intact() or not entry.draw(random):
            del entry
            self.clear()  # first, so that two bases are never in memory at once
            model = load()
            if mixes_rows(model):  # such layers hold tensors outside their parameters
                return model
            entry = self._entry = _CachedBase(key, model, random)
        return entry.copy(random)

    def holds(self, entry: object | None) -> bool:
        """Return whether this is the kept base, and nothing was written into it."""
        return self._entry is not None and entry is self._entry and self._entry.is_intact()

    def addresses(self) -> frozenset[int]:
        """Return the addresses of the kept base's parameters; none if one was written into."""
        if self._entry is None or not self._entry.is_intact():
            return frozenset()
        return self._entry.addresses()

    def clear(self) -> None:
        """Drop the base."""
        self._entry = None

    def release_if_replaced(self) -> None:
        """Drop a large base if the last copy no longer uses most of its tensors.

        A method that changes the base would otherwise need twice the memory.
        """
        if self._entry is not None and not self._entry.is_shared():
            self.clear()


_active: ContextVar[BaseCache | None] = ContextVar("base_cache", default=None)


def cache_base(cache: BaseCache | None = None) -> AbstractContextManager[BaseCache]:
    """Keep the base loaded between the jobs in the block, in ``cache`` or a new one."""
    return set_in_block(_active, cache or BaseCache())


def load_cached(
    key: Hashable, load: Callable[[], nn.Module], random: RandomLayers | None = None
) -> nn.Module:
    """Return the base with this key from the active cache; without a cache, load it."""
    cache = _active.get()
    return load() if cache is None else cache.get(key, load, random)


def active_entry() -> object | None:
    """Return the base that the active cache keeps, None without one."""
    cache = _active.get()
    return None if cache is None else cache.entry


def holds(entry: object | None) -> bool:
    """Return whether the active cache keeps this base, and nothing was written into it."""
    cache = _active.get()
    return cache is not None and cache.holds(entry)


def base_addresses() -> frozenset[int]:
    """Return the addresses of the parameters of the base in the active cache, if it is intact."""
    cache = _active.get()
    return frozenset() if cache is None else cache.addresses()


def release_if_replaced() -> None:
    """Drop a large base of the active cache if the last copy no longer uses most of its tensors."""
    cache = _active.get()
    if cache is not None:
        cache.release_if_replaced()


class _CachedBase:
    """A loaded base with the checksums of its tensors."""

    def __init__(self, key: Hashable, model: nn.Module, random: RandomLayers | None) -> None:
        self.key = key
        self.model = model
        self.sums = self._checksums()
        self.draws: dict[Hashable, dict[str, Tensor]] = {}
        """The random layers' parameters by name, for each draw."""
        if random is not None:
            self._keep_draw(random, model)
        self.last_copy: list[tuple[Tensor, weakref.ref[Tensor]]] = []
        """The kept parameters, each with its counterpart in the last copy."""

    def draw(self, random: RandomLayers | None) -> bool:
        """Draw the random layers unless their draw is kept; return False if that is not possible.

        It is not if another draw is not allowed, or changes more than the random layers.
        """
        if random is None or random.draw in self.draws:
            return True
        if random.redraw is None:
            return False
        drawn = random.redraw()
        kept, new = dict(self.model.named_parameters()), dict(drawn.named_parameters())
        if [(n, p.shape) for n, p in kept.items()] != [(n, p.shape) for n, p in new.items()]:
            return False
        sums = zip(kept, self.sums, map(_bit_sum, new.values()), strict=True)
        if any(mine != int(its) for name, mine, its in sums if not random.contains(name)):
            return False
        self._keep_draw(random, drawn)
        return True

    def _keep_draw(self, random: RandomLayers, drawn: nn.Module) -> None:
        device = next(self.model.parameters()).device
        self.draws[random.draw] = {
            n: p.detach().to(device) for n, p in drawn.named_parameters() if random.contains(n)
        }

    def copy(self, random: RandomLayers | None) -> nn.Module:
        """Return a copy of the modules on the same tensors, except those of the random layers."""
        drawn = {} if random is None else self.draws[random.draw]
        new: dict[int, Tensor] = {}
        self.last_copy = []
        for name, p in self.model.named_parameters():
            if is_packed(p):
                new[id(p)] = p
            elif name in drawn:
                new[id(p)] = nn.Parameter(drawn[name].clone(), False)
            else:
                new[id(p)] = nn.Parameter(p.detach(), False)
                self.last_copy.append((p, weakref.ref(new[id(p)])))
        copied: nn.Module = copy.deepcopy(self.model, {**new})
        return copied

    def addresses(self) -> frozenset[int]:
        """Return the addresses of the parameters that copies share."""
        return frozenset(p.data_ptr() for p in self.model.parameters() if not is_packed(p))

    def is_shared(self) -> bool:
        """Return whether the base is small, or the last copy uses all but a tenth of its bytes."""
        replaced = whole = 0
        for p, reference in self.last_copy:
            size, its = p.numel() * p.element_size(), reference()
            whole += size
            replaced += size if its is None or its.data_ptr() != p.data_ptr() else 0
        return whole <= SMALL_BYTES or replaced <= whole // MOST_REPLACED

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
