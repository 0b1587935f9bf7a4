"""What a worker keeps of a method's set-up from one group of trials to the next.

Attaching a method takes up to a second a seed, and every group of a method in a study has the same
seeds. Kept are the initial tensors of each seed, and the model to which the method is attached with
its hook, if a group can leave nothing in them but tensors.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bakeoff.core.context import set_in_block
from bakeoff.engine import base_cache
from bakeoff.engine.lanes.lanes import (
    InitialTensors,
    Lanes,
    refuse_different_frozen,
    write_tensors,
)
from bakeoff.methods.hook import Hook, overrides
from bakeoff.tasks._base import load_tokenizer

MOST_BYTES = 1 << 30
"""Memory for initial tensors, on the CPU, and for the models' own, on the device."""


class AttachedModel(NamedTuple):
    """A model with its method attached, and the initial tensors of the seed it was attached with.

    ``base`` is the base's entry in ``engine.base_cache``, None if the model does not share its
    tensors.
    """

    model: nn.Module
    hook: Hook
    start: InitialTensors
    base: object | None

    def use_start(self, start: InitialTensors) -> AttachedModel:
        """Return this model with the frozen tensors of another seed.

        Raises:
            FrozenPartsDiffer: large ones differ.
        """
        refuse_different_frozen([self.start, start])
        write_tensors(self.model, start.small)
        return self._replace(start=start)


class SetupCache:
    """Keeps the set-ups of several methods, those that were used last."""

    def __init__(self) -> None:
        self._methods: dict[Hashable, MethodSetups] = {}
        self.tokenizer = functools.lru_cache(maxsize=1)(load_tokenizer)
        """Returns the tokenizer of a base, loading it if it is not kept."""

    def of_method(self, key: Hashable) -> MethodSetups:
        """Return what is kept of a method; the oldest methods are dropped when they need room."""
        found = self._methods.pop(key, None) or MethodSetups()
        while sum(m.size for m in (*self._methods.values(), found)) > MOST_BYTES and self._methods:
            del self._methods[next(iter(self._methods))]
        self._methods[key] = found
        return found


class MethodSetups:
    """The initial tensors of each seed of one method, and a model to which it is attached."""

    def __init__(self) -> None:
        self._starts: dict[int, InitialTensors] = {}
        self._of_any_seed: InitialTensors | None = None
        self._model: AttachedModel | None = None
        self.size = 0
        """Bytes of the initial tensors and of the model's own."""

    def start(self, seed: int) -> InitialTensors | None:
        """Return the initial tensors of a seed, None if they are not kept."""
        return self._starts.get(seed, self._of_any_seed)

    def keeps(self, start: InitialTensors) -> bool:
        """Return whether these are kept, and so are on the CPU."""
        return any(start is kept for kept in (*self._starts.values(), self._of_any_seed))

    def add_start(self, seed: int, start: InitialTensors, drew: bool) -> InitialTensors:
        """Keep a seed's initial tensors on the CPU, if they fit; return them.

        Tensors that are equal to another seed's share its memory. If none was drawn at random
        (``drew``), every seed has these.
        """
        if _size(start) > MOST_BYTES:
            return start
        first = next(iter(self._starts.values()), None)
        trained, added = {}, sum(map(_bytes, start.small.values()))
        for name, tensor in start.trained.items():
            moved = tensor.cpu()
            if first is not None and torch.equal(first.trained[name], moved):
                moved = first.trained[name]
            else:
                added += _bytes(moved)
            trained[name] = moved
        if self.size + added > MOST_BYTES:
            return start
        self.size += added
        kept = self._starts[seed] = start._replace(trained=trained)
        if not drew:
            self._of_any_seed = kept
        return kept

    def keep_model(self, attached: AttachedModel, lanes: Lanes) -> None:
        """Keep a model after the trials of its group, with its own initial tensors in it."""
        if attached.base is None or not _has_no_state(attached.hook):
            return
        lanes.run_single(0)
        write_tensors(attached.model, {**attached.start.trained, **attached.start.small})
        self._model = attached
        self.size += _size(attached.start)

    def take_model(self) -> AttachedModel | None:
        """Return the kept model and forget it; None if there is none or its base has changed."""
        found, self._model = self._model, None
        if found is not None:
            self.size -= _size(found.start)
        return found if found is not None and base_cache.holds(found.base) else None


_active: ContextVar[SetupCache | None] = ContextVar("setup_cache", default=None)


def keep_setups(cache: SetupCache | None = None) -> AbstractContextManager[SetupCache]:
    """Keep set-ups from one group of trials to the next in the block, in ``cache`` or a new one."""
    return set_in_block(_active, cache or SetupCache())


class JobCaches:
    """What a process keeps from one job to the next: the base, and a method's set-up."""

    def __init__(self) -> None:
        self._base, self._setups = base_cache.BaseCache(), SetupCache()

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Use the caches in the block; an error drops what they hold."""
        try:
            with base_cache.cache_base(self._base), keep_setups(self._setups):
                yield
        except BaseException:
            self._base, self._setups = base_cache.BaseCache(), SetupCache()
            raise


def active_setups() -> SetupCache | None:
    """Return the cache of this process, None without one."""
    return _active.get()


def random_states(device: str) -> list[Any]:
    """Return the states of the random generators that attaching a method may draw from."""
    numbers = np.random.get_state(legacy=False)
    states: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), repr(numbers)]
    if device.startswith("cuda"):
        states.append(torch.cuda.get_rng_state(device).tolist())
    return states


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(start: InitialTensors) -> int:
    """Return the bytes of initial tensors."""
    return sum(map(_bytes, (*start.trained.values(), *start.small.values())))


def _has_no_state(hook: Hook) -> bool:
    """Return whether a hook is one of ours and keeps nothing of a trial outside its tensors."""
    ours = type(hook).__module__.startswith("bakeoff.")
    return ours and not overrides(hook, "after_step", "after_lanes_step", "state")
