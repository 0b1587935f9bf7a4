"""A static key-value cache whose rows are at places of their own: the memory of fast generation.

Used by ``generate``. A slot holds one prompt and its answer from place 0 on, so a token's place is
its position and nothing is padded between them. A slot is filled from a prompt's own pass, written
one token at a time, moved, and given to the next prompt; its buffers stay where they are, which is
what lets a CUDA graph replay the step that reads and writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer


class FastGenerationUnsupported(Exception):
    """Fast generation cannot serve this model; the message says why."""


class SlotView:
    """The part of the slots that a step sees: the first ``width`` rows and ``length`` places.

    ``at`` is the place ``[width]`` that each row's token is written to; None before the first step.
    """

    width: int = 0
    length: int = 0
    at: Tensor | None = None


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's keys and values, ``[slots, heads, places, head width]``."""

    is_sliding = False

    def __init__(self, view: SlotView, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.view = view
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers are there from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token a row, ``[width, heads, 1, head width]``; return all that is in view."""
        view = self.view
        assert view.at is not None
        keys = self.keys[: view.width, :, : view.length]
        values = self.values[: view.width, :, : view.length]
        place = view.at[:, None, None, None]
        for held, new in ((keys, key_states), (values, value_states)):
            # a prompt's cache holds values in the keys' type, fp32 under autocast
            held.scatter_(2, place.expand_as(new), new.to(held.dtype))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many places are in view, and that the first is place 0."""
        return self.view.length, 0

    def get_seq_length(self) -> int:
        """Return how many places are in view: rows have lengths of their own."""
        return self.view.length

    def get_max_length(self) -> int:
        """Return how many places a slot has."""
        return int(self.keys.shape[2])


class KVSlots(Cache):  # type: ignore[misc]
    """``rows`` slots of ``places`` tokens, shaped like the layers of a prompt's own cache."""

    def __init__(self, like: DynamicCache, rows: int, places: int) -> None:
        self.view = SlotView()
        super().__init__(
            layers=[
                SlotLayer(
                    self.view, *(_new_buffer(t, rows, places) for t in (own.keys, own.values))
                )
                for own in like.layers
            ]
        )

    def fill(self, prompts: DynamicCache, slots: Tensor) -> None:
        """Copy the keys and values of prompts, ``[B, heads, T, head width]``, to these slots.

        What the slots held before is wiped: it is masked, but an infinite value would get through.
        """
        for own, given in zip(self.layers, prompts.layers, strict=True):
            for into, new in ((own.keys, given.keys), (own.values, given.values)):
                into.narrow(2, 0, new.shape[2]).index_copy_(0, slots, new)
                into.narrow(2, new.shape[2], into.shape[2] - new.shape[2]).index_fill_(0, slots, 0)

    def move(self, origin: Tensor, target: Tensor) -> None:
        """Copy slots to others; the two share none."""
        for own in self.layers:
            for held in (own.keys, own.values):
                held.index_copy_(0, target, held.index_select(0, origin))

    def look(self, width: int, length: int, at: Tensor) -> Tensor:
        """Set the view; return which places each row may attend to, ``[width, 1, 1, length]``."""
        self.view.width, self.view.length, self.view.at = width, length, at
        places = torch.arange(length, device=at.device)
        return (places <= at[:, None])[:, None, None]


def bytes_per_token(cache: DynamicCache) -> int:
    """Return the bytes that one token of one row takes in all layers."""
    each = (t for own in cache.layers for t in (own.keys, own.values))
    return sum(t.shape[1] * t.shape[3] * t.element_size() for t in each)


def new_prompt_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a pass over prompts.

    Raises:
        NotFast: the model keeps something else than the keys and values of all tokens.
    """
    cache = DynamicCache(config=config)
    check_cache_layers(cache.layers)
    return cache


def check_cache_layers(layers: Sequence[Any]) -> None:
    """Refuse layers that are not plain growing keys and values.

    Raises:
        NotFast: a sliding window, a state of linear attention, or the like.
    """
    kinds = sorted({type(own).__name__ for own in layers if type(own) is not DynamicLayer})
    if kinds:
        raise FastGenerationUnsupported(f"its cache has layers of another kind: {', '.join(kinds)}")


def _new_buffer(like: Tensor, rows: int, places: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], places, like.shape[3])
