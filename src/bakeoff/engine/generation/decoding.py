"""One step of fast generation: the next token of every slot, on CUDA as one graph a shape.

Used by ``generate``. A step reads and writes tensors that stay in place (tokens, positions, slots)
and needs nothing of the host, so it can be captured once and replayed. While it runs, attention is
ours where the model's was SDPA: one query a row, query heads that share a key head side by side, so
that grouped keys are read as they lie and never repeated.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bakeoff.engine.cuda_graphs import abort_capture
from bakeoff.engine.device import is_out_of_memory
from bakeoff.engine.generation.kv_slots import FastGenerationUnsupported, KVSlots
from bakeoff.engine.packing.attention import ATTENTION_NAME, UNSUPPORTED_ARGUMENTS

DECODING_ATTENTION = "bakeoff-decoding"
WARM_UP = 2
_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What takes a mask and plans nothing on the host."""


def attend_single_query(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with one query a row, ``[B, heads, 1, width]``, as transformers' interface asks.

    Raises:
        NotFast: the model's attention does more than mask and scale.
    """
    more = [name for name in UNSUPPORTED_ARGUMENTS if kwargs.get(name) is not None]
    if more:
        raise FastGenerationUnsupported(f"attention with {', '.join(more)}")
    rows, heads, _, width = query.shape
    side_by_side = query.reshape(rows, key.shape[1], -1, width)
    out = scaled_dot_product_attention(
        side_by_side, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(rows, 1, heads, value.shape[3]), None


AttentionInterface.register(DECODING_ATTENTION, attend_single_query)


class Decoder:
    """Takes steps over ``slots``: ``tokens`` ``[slots]`` stand at ``positions`` ``[slots]``."""

    def __init__(
        self, model: nn.Module, slots: KVSlots, tokens: Tensor, positions: Tensor, graphs: bool
    ) -> None:
        self.model = model
        self.slots, self.tokens, self.positions = slots, tokens, positions
        self.graphs = graphs
        self._known: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._config = text_config(model)
        self._additive = self._config._attn_implementation == "eager"

    def step(self, width: int, length: int) -> None:
        """Put the next token of the first ``width`` slots, of ``length`` places, in its place."""
        if self.graphs and (width, length) not in self._known:
            self._capture(width, length)
        if (width, length) in self._known:
            self._known[width, length].replay()
        else:
            self._step(width, length)

    def _step(self, width: int, length: int) -> None:
        tokens, positions = self.tokens[:width], self.positions[:width]
        at = positions.clamp(max=length - 1)  # of a slot that nobody is in any more
        seen = self.slots.look(width, length, at)
        mask = _additive_mask(seen, self.model) if self._additive else seen
        with self._ours():
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=at[:, None],
                past_key_values=self.slots,
                use_cache=True,
            ).logits
        tokens.copy_(greedy_tokens(logits))
        positions.copy_(at + 1)

    @contextlib.contextmanager
    def _ours(self) -> Iterator[None]:
        """Attend our way, and let autocast keep no copies: a graph must not hold another's."""
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

    def _capture(self, width: int, length: int) -> None:
        """Capture a step; where that fails, warn, and take steps without graphs from now on."""
        device = self.tokens.device
        before = self.tokens.clone(), self.positions.clone()
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):  # what they write is written again before it is read
                self._step(width, length)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.tokens.copy_(before[0])
        self.positions.copy_(before[1])
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._step(width, length)
        except Exception as error:
            abort_capture(str(device))
            if is_out_of_memory(error):
                raise
            why = str(error).strip().split("\n")[0]
            warnings.warn(f"answers are generated without CUDA graphs: {why}", stacklevel=2)
            self.graphs = False
            return
        self._pool = graph.pool()
        self._known[width, length] = graph


def greedy_tokens(logits: Tensor) -> Tensor:
    """Return the likeliest token of the last position, ``[B]``, in fp32 as ``generate`` does."""
    return logits[:, -1].float().argmax(-1)


def text_config(model: Any) -> Any:
    """Return the configuration that a model's decoder layers read."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.config.get_text_config(decoder=True)


def check_model(model: Any) -> None:
    """Refuse a model that a step cannot serve, as far as can be seen from outside.

    Raises:
        NotFast: with the reason.
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


def _additive_mask(seen: Tensor, model: Any) -> Tensor:
    """Return a mask as eager attention adds it."""
    like = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(seen, dtype=like).masked_fill(~seen, torch.finfo(like).min)
