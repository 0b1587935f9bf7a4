"""CorDA: LoRA that starts from an SVD of W weighted by the covariance of the layers' inputs."""

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
    """Starts inside the base's weights, by context covariance (arXiv 2406.05223)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, ground: AttachContext) -> nn.Module:
        """Let PEFT collect covariances on the calibration examples, one by one, then attach."""
        of: Any = config
        if of.target_modules == "all-linear":  # PEFT's preprocessing knows no such word
            of.target_modules = set(linear_layers(base, ground.heads))

        def run() -> None:
            # a row at a time: PEFT's covariance takes [tokens, width], and no padding may be in it
            with torch.no_grad():
                for batch in ground.batches(1):
                    base(**batch.inputs)

        with _at_least_two_dimensions(base, ground.heads):
            preprocess_corda(base, of, run_model=run)
        return super().inject(base, of, ground)


@contextlib.contextmanager
def _at_least_two_dimensions(base: nn.Module, heads: Sequence[str]) -> Iterator[None]:
    """Show one vector as a row of one token: PEFT squeezes a pooler's input away."""

    def widen(module: nn.Module, given: tuple[Any, ...]) -> Any:
        return (given[0][None], *given[1:]) if given[0].dim() == 2 else None

    def narrow(module: nn.Module, given: tuple[Any, ...], out: torch.Tensor) -> Any:
        return out[0] if len(given[0]) == given[0].shape[1] == 1 else None

    handles: list[Any] = []
    for layer in linear_layers(base, heads).values():
        handles += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(narrow)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


HOOK = CorDA
