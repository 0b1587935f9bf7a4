"""A static key-value cache with one slot per prompt: the memory of fast generation.

A slot holds one prompt and its completion from position 0 on, so that nothing is padded between
them. It is filled from the prompt's own forward pass, extended one token at a time, moved, and
reused for the next prompt. Its buffers stay in place, so that a CUDA graph can replay the step that
reads and writes them.

Tensor axes: S = slots, B = slots in use, H = heads, P = positions of a slot, L = visible positions,
T = prompt tokens, D = head width. Keys and values are ``[S, H, P, D]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from bakeoff.engine.accelerators import Unsupported


class FastGenerationUnsupported(Unsupported):
    """Fast generation does not support this model; the message says why."""


class SlotView:
    """The part of the slots that a step sees: the first ``width`` rows, ``length`` positions.

    ``at`` ``[B]`` is the position where each row's token is written; None before the first step.
    """

    width: int = 0
    length: int = 0
    at: Tensor | None = None


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's keys and values, ``[S, H, P, D]``."""

    is_sliding = False

    def __init__(self, view: SlotView, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.view = view
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row, ``[B, H, 1, D]``; return the visible keys and values."""
        view = self.view
        assert view.at is not None
        keys = self.keys[: view.width, :, : view.length]
        values = self.values[: view.width, :, : view.length]
        place = view.at[:, None, None, None]
        for buffer, new in ((keys, key_states), (values, value_states)):
            # a prompt's cache holds values in the keys' dtype, fp32 under autocast
            buffer.scatter_(2, place.expand_as(new), new.to(buffer.dtype))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of visible positions, and that the first is position 0."""
        return self.view.length, 0

    def get_seq_length(self) -> int:
        """Return the number of visible positions: each row has its own length."""
        return self.view.length

    def get_max_length(self) -> int:
        """Return the number of positions of a slot."""
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # the name in transformers 5.0


class KVSlots(Cache):  # type: ignore[misc]  # transformers has no types
    """``rows`` slots of ``places`` positions each, shaped like the layers of a prompt's cache."""

    def __init__(self, like: DynamicCache, rows: int, places: int) -> None:
        self.view = SlotView()
        super().__init__(
            layers=[
                SlotLayer(
                    self.view, *(_new_buffer(t, rows, places) for t in (layer.keys, layer.values))
                )
                for layer in like.layers
            ]
        )

    def fill(self, prompts: DynamicCache, slots: Tensor, rows: Tensor | None = None) -> None:
        """Copy the keys and values of prompts, ``[n, H, T, D]``, to these slots.

        ``rows`` picks the prompts to copy, None: all. The rest of the slots is zeroed: it is
        masked, but an infinite value would still spread.
        """
        for layer, prompt in zip(self.layers, prompts.layers, strict=True):
            for into, given in ((layer.keys, prompt.keys), (layer.values, prompt.values)):
                new = given if rows is None else given.index_select(0, rows)
                into.narrow(2, 0, new.shape[2]).index_copy_(0, slots, new)
                into.narrow(2, new.shape[2], into.shape[2] - new.shape[2]).index_fill_(0, slots, 0)

    def move(self, origin: Tensor, target: Tensor) -> None:
        """Copy slots to other slots; the two sets may overlap."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                # the copy of all slots of a buffer is made before the first is written
                buffer.index_copy_(0, target, buffer.index_select(0, origin))

    def set_view(self, width: int, length: int, at: Tensor) -> Tensor:
        """Set the view; return which positions each row may attend to, ``[B, 1, 1, L]``."""
        self.view.width, self.view.length, self.view.at = width, length, at
        places = torch.arange(length, device=at.device)
        return (places <= at[:, None])[:, None, None]


def bytes_per_token(cache: DynamicCache) -> int:
    """Return the bytes that one token of one row uses in all layers."""
    each = (t for layer in cache.layers for t in (layer.keys, layer.values))
    return sum(t.shape[1] * t.shape[3] * t.element_size() for t in each)


def new_prompt_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a pass over prompts.

    Raises:
        FastGenerationUnsupported: it caches something other than the keys and values of all tokens.
    """
    cache = DynamicCache(config=config)
    check_cache_layers(cache.layers)
    return cache


def check_cache_layers(layers: Sequence[Any]) -> None:
    """Refuse cache layers other than plain growing keys and values.

    Raises:
        FastGenerationUnsupported: a sliding window, a linear-attention state, or similar.
    """
    kinds = sorted({type(x).__name__ for x in layers if type(x) is not DynamicLayer})
    if kinds:
        raise FastGenerationUnsupported(f"its cache has unsupported layers: {', '.join(kinds)}")


def _new_buffer(like: Tensor, rows: int, places: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], places, like.shape[3])
