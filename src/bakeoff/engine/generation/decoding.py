"""One decoding step: the next token of every slot, on CUDA as one graph per shape.

A step reads and writes tensors that stay in place (tokens, positions, slots) and needs nothing from
the host, so it can be captured once and replayed. During a step our own attention replaces the
model's SDPA: it has one query per row and lays out query heads that share a key head next to each
other, so that grouped keys are never repeated.

Tensor axes: B = slots in use, of all lanes, H = heads, L = visible positions of a slot, D = head
width, V = vocabulary.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bakeoff.engine.cuda_graphs import abort_capture
from bakeoff.engine.device import is_out_of_memory
from bakeoff.engine.generation.kv_slots import FastGenerationUnsupported, KVSlots
from bakeoff.engine.packing.attention import (
    ATTENTION_NAME,
    UNSUPPORTED_ARGUMENTS,
    register_attention,
)

DECODING_ATTENTION = "bakeoff-decoding"
"""Name of ``attend_single_query`` in transformers' attention interface."""
WARM_UP = 2
"""Runs of a step before it is captured."""
_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""SDPA kernels that accept a mask and need no planning on the host."""


def attend_single_query(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with one query per row, ``[B, H, 1, D]``.

    Raises:
        FastGenerationUnsupported: the model's attention does more than mask and scale.
    """
    unsupported = [name for name in UNSUPPORTED_ARGUMENTS if kwargs.get(name) is not None]
    if unsupported:
        raise FastGenerationUnsupported(f"attention with {', '.join(unsupported)}")
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[3]), None


register_attention(DECODING_ATTENTION, attend_single_query)


class LaneModel(Protocol):
    """A model that runs several lanes in one batch, such as ``engine.lanes.Lanes``."""

    @property
    def model(self) -> nn.Module:
        """The model that all lanes share."""
        ...

    def run_lanes(self, first: int, width: int, rows: int) -> None:
        """Batch ``width`` lanes from ``first``, each with ``rows`` rows of the batch."""
        ...


class PlainModel(NamedTuple):
    """A model without lanes, as a ``LaneModel`` of one lane."""

    model: nn.Module

    def run_lanes(self, first: int, width: int, rows: int) -> None:
        """Do nothing: the one lane is the model itself."""


class LaneSpan(NamedTuple):
    """Consecutive lanes: ``width`` of them from ``first``."""

    first: int
    width: int

    @property
    def lanes(self) -> range:
        """The lanes' numbers."""
        return range(self.first, self.first + self.width)


class DecodeShape(NamedTuple):
    """Shape of a step: the lanes, the rows of each of them, and the visible positions of a row."""

    span: LaneSpan
    rows: int
    length: int


class Decoder:
    """Takes steps over KV slots, whose last tokens are ``tokens`` at ``positions``, ``[slots]``.

    A step takes the first slots, lane after lane.
    """

    def __init__(
        self, lanes: LaneModel, slots: KVSlots, tokens: Tensor, positions: Tensor, graphs: bool
    ) -> None:
        self.lanes = lanes
        self.slots, self.tokens, self.positions = slots, tokens, positions
        self.graphs = graphs
        self._captured: dict[DecodeShape, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._config = text_config(lanes.model)
        self._additive = self._config._attn_implementation == "eager"

    def step(self, shape: DecodeShape) -> None:
        """Decode the next token of every slot of a shape."""
        if self.graphs and shape not in self._captured:
            self._capture(shape)
        if shape in self._captured:
            self._captured[shape].replay()
        else:
            self._step(shape)

    def _step(self, shape: DecodeShape) -> None:
        span, rows, length = shape
        width = span.width * rows
        self.lanes.run_lanes(*span, rows)
        tokens, positions = self.tokens[:width], self.positions[:width]
        at = positions.clamp(max=length - 1)  # a finished slot may be past the end
        visible = self.slots.set_view(width, length, at)
        mask = _additive_mask(visible, self.lanes.model) if self._additive else visible
        with self._decoding_context():
            logits = self.lanes.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=at[:, None],
                past_key_values=self.slots,
                use_cache=True,
            ).logits
        tokens.copy_(greedy_tokens(logits))
        positions.copy_(at + 1)

    @contextlib.contextmanager
    def _decoding_context(self) -> Iterator[None]:
        """Use decoding attention, without autocast's weight cache: graphs must not share copies."""
        before, kind = self._config._attn_implementation, self.tokens.device.type
        with contextlib.ExitStack() as stack:
            if torch.is_autocast_enabled(kind):
                half = torch.get_autocast_dtype(kind)
                stack.enter_context(torch.autocast(kind, half, cache_enabled=not self.graphs))
            if not self._additive:
                self._config._attn_implementation = DECODING_ATTENTION
                stack.callback(setattr, self._config, "_attn_implementation", before)
                if kind == "cuda":
                    stack.enter_context(sdpa_kernel(_KERNELS))
            yield

    def _capture(self, shape: DecodeShape) -> None:
        """Capture a step; if that fails, warn and take steps without graphs from then on."""
        device = self.tokens.device
        before = self.tokens.clone(), self.positions.clone()
        side_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's has no types
        side_stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP):  # their writes are overwritten before they are read
                self._step(shape)
        torch.cuda.current_stream(device).wait_stream(side_stream)
        self.tokens.copy_(before[0])
        self.positions.copy_(before[1])
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._step(shape)
        except Exception as error:
            abort_capture(str(device))
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0]
            warnings.warn(f"answers are generated without CUDA graphs: {reason}", stacklevel=2)
            self.graphs = False
            return
        self._pool = graph.pool()
        self._captured[shape] = graph


def greedy_tokens(logits: Tensor) -> Tensor:
    """Return the most likely token of the last position, ``[B]``, in fp32 as ``generate`` does."""
    return logits[:, -1].float().argmax(-1)


def text_config(model: Any) -> Any:
    """Return the configuration of a model's decoder layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.config.get_text_config(decoder=True)


def check_model(model: Any) -> None:
    """Refuse a model that decoding steps do not support, as far as its configuration shows.

    Raises:
        FastGenerationUnsupported: with the reason.
    """
    config = text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise FastGenerationUnsupported("an encoder-decoder")
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise FastGenerationUnsupported(
            "its virtual tokens are put before the prompt by PEFT's own generate"
        )
    if config._attn_implementation not in ("sdpa", "eager", ATTENTION_NAME):
        raise FastGenerationUnsupported(f"attention implementation '{config._attn_implementation}'")


def _additive_mask(visible: Tensor, model: Any) -> Tensor:
    """Return a boolean mask as the additive one of eager attention."""
    like = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(visible, dtype=like).masked_fill(~visible, torch.finfo(like).min)
