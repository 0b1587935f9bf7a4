"""EVA: LoRA whose A is initialised with the principal directions of the layers' inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import peft
import torch
from peft.tuners.lora.eva import (
    HashHook,
    get_eva_state_dict,
    initialize_lora_eva_weights,
    prepare_layer_inputs_fn_language_modeling,
)
from torch import Tensor, nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible

ROWS = 32
"""Minimum number of examples in a batch of the incremental SVD."""
MOST_PASSES = 100
"""Batches after which the directions must have settled; on text it takes a few."""

_starts: WeakKeyDictionary[Callable[..., Any], dict[str, dict[str, Tensor]]] = WeakKeyDictionary()
"""The directions that were computed for a study's calibration examples, by configuration. They do
not depend on the seed."""


class Eva(Hook):
    """Initialised by an SVD of activations, which also distributes the ranks (arXiv 2410.07170)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach LoRA, then let PEFT run the calibration batches."""
        key = repr(config)  # before PEFT writes the ranks into it
        # PEFT draws numbers that the directions replace: one seed, so that trials share a start
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = super().inject(base, config, context)
            model.eval()
            known = _starts.setdefault(context.batches, {})
            if key not in known:
                known[key] = _directions(model, config, context)
            initialize_lora_eva_weights(model, eva_state_dict=dict(known[key]))
        return model


def _directions(model: Any, config: Any, context: AttachContext) -> dict[str, Tensor]:
    """Return the first rows of A for each layer.

    Raises:
        Incompatible: there are too few examples, or the directions do not settle.
    """
    # PEFT repeats until every layer has seen as many vectors in a batch as it needs directions
    needed = math.ceil(config.r * config.eva_config.rho)
    rows = max(ROWS, needed)
    calibration = [dict(b.inputs) for b in context.batches(rows) if b.rows >= needed]
    if not calibration:
        raise Incompatible(f"it starts from at least {needed} training examples")
    passes = 0

    def forward(model: nn.Module, inputs: dict[str, Any]) -> Any:
        nonlocal passes
        passes += 1
        if passes > MOST_PASSES:
            raise Incompatible(
                f"the main directions of its layers' inputs have not settled after {MOST_PASSES} "
                "batches of training examples"
            )
        return model(**inputs)

    with _hash_bytes():
        directions: dict[str, Tensor] = get_eva_state_dict(
            model,
            calibration,
            forward_fn=forward,
            prepare_layer_inputs_fn=_layer_inputs,
            show_progress_bar=False,
        )
    return directions


@contextlib.contextmanager
def _hash_bytes() -> Iterator[None]:
    """Let PEFT find layers of equal inputs by their bytes: it makes a Python float of each value.

    That takes most of a minute and gigabytes for a hundred layers of 12,000 tokens.
    """
    before = HashHook.hash_fn
    HashHook.hash_fn = staticmethod(
        lambda x: hash(x.contiguous().view(torch.uint8).numpy().tobytes())
    )
    try:
        yield
    finally:
        HashHook.hash_fn = staticmethod(before)


def _layer_inputs(inputs: Any, mask: Tensor, name: str) -> Tensor:
    """Return the inputs of tokens without padding; a pooler gets one vector per row."""
    x: Tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    if x.dim() == 2:
        return x.contiguous()
    vectors: Tensor = prepare_layer_inputs_fn_language_modeling(x, mask, name)
    return vectors


HOOK = Eva
