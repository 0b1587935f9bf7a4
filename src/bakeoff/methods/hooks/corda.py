"""CorDA: LoRA initialised by an SVD of W, weighted by the covariance of the layers' inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import peft
import torch
from peft.tuners.lora.corda import preprocess_corda
from torch import nn

from bakeoff.methods.arguments import linear_layers
from bakeoff.methods.hook import AttachContext
from bakeoff.methods.residual_lora import ResidualLora


class CorDA(ResidualLora):
    """Initialised from the base's weights and input covariances (arXiv 2406.05223)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Let PEFT collect covariances on the calibration examples, then attach."""
        settings: Any = config
        if settings.target_modules == "all-linear":  # PEFT's preprocessing does not support it
            settings.target_modules = set(linear_layers(base, context.heads))

        def run() -> None:
            # one row at a time: PEFT's covariance takes [tokens, width] without padding
            with torch.no_grad():
                for batch in context.batches(1):
                    base(**batch.inputs)

        with _at_least_two_dimensions(base, context.heads):
            preprocess_corda(base, settings, run_model=run)
        return super().inject(base, settings, context)


@contextlib.contextmanager
def _at_least_two_dimensions(base: nn.Module, heads: Sequence[str]) -> Iterator[None]:
    """Reshape a pooler's input [1, width] to one token [1, 1, width], which PEFT expects."""

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return (inputs[0][None], *inputs[1:]) if inputs[0].dim() == 2 else None

    def narrow(module: nn.Module, inputs: tuple[Any, ...], out: torch.Tensor) -> Any:
        return out[0] if len(inputs[0]) == inputs[0].shape[1] == 1 else None

    handles: list[Any] = []
    for layer in linear_layers(base, heads).values():
        handles += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(narrow)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


HOOK = CorDA
