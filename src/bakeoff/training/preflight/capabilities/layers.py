"""Find the types of layer that a method supports, with a model of one layer for each type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bakeoff.core.trial import MethodEntry
from bakeoff.engine import peft_patches
from bakeoff.methods.arguments import config_class
from bakeoff.methods.hook import build_hook, trainable_parameters
from bakeoff.training.preflight.capabilities import tiny
from bakeoff.training.preflight.capabilities.train import STEPS, resolve_config

WIDTH = 64
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(WIDTH, WIDTH),
    "Conv1D": lambda: Conv1D(WIDTH, WIDTH),
    "Embedding": lambda: nn.Embedding(tiny.WORDS, WIDTH),
    "Conv1d": lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
    "Conv2d": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
    "Conv3d": lambda: nn.Conv3d(WIDTH, WIDTH, 3, padding=1),
    "MultiheadAttention": lambda: nn.MultiheadAttention(WIDTH, 4, batch_first=True),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
}


class ToyModel(nn.Module):
    """A model with one layer under test, ``target``, whose output is ``[B, T, WIDTH]``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.config = SimpleNamespace(
            model_type="toy", hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4,
            vocab_size=tiny.WORDS, tie_word_embeddings=False,
        )  # fmt: skip
        self.config.get_text_config = lambda: self.config
        self.config.to_dict = dict
        self.embed = nn.Embedding(tiny.WORDS, WIDTH)
        self.target = LAYERS[kind]()
        self.out = nn.Linear(WIDTH, tiny.WORDS)

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.out

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """Run embedding, layer under test and output layer."""
        x = self.embed(input_ids)
        if self.kind == "Embedding":
            x = self.target(input_ids)
        elif self.kind == "MultiheadAttention":
            x = self.target(x, x, x)[0]
        elif self.kind.startswith("Conv") and self.kind != "Conv1D":
            # [B, C, T], with dimensions of size 1 in between for 2d and 3d convolutions
            extra = (1,) * (int(self.kind[4]) - 1)
            x = self.target(x.mT.reshape(len(x), WIDTH, *extra, -1)).reshape(len(x), WIDTH, -1).mT
        else:
            x = self.target(x)
        return SimpleNamespace(logits=self.out(x))


def supported_layers(entry: MethodEntry) -> tuple[str, ...]:
    """Return the types of layer that the method can be attached to and trained on.

    Empty for methods without target modules: prompts, and those that train parts of the base.
    """
    if entry.peft is None:
        return ()
    try:
        known = {f.name for f in dataclasses.fields(config_class(entry))}
        config = {**resolve_config(entry), "target_modules": ["target"]}
    except Exception:  # attaching the entry fails with the reason
        return ()
    if "target_modules" not in known:
        return ()
    if "feedforward_modules" in known:
        config["feedforward_modules"] = []
    return tuple(kind for kind in LAYERS if _trains(entry, config, kind))


def _trains(entry: MethodEntry, config: dict[str, Any], kind: str) -> bool:
    torch.manual_seed(0)
    model = ToyModel(kind).requires_grad_(False)
    # without a task, PEFT needs nothing of the model but its layers
    context = tiny.attach_context("llama", STEPS)._replace(task_type=None)  # type: ignore[arg-type]
    try:
        attached: Any = build_hook(entry, config).attach(model, context)
        peft_patches.install_patches(attached)
        attached.train()
        batch = next(tiny.batches("llama", tiny.ROWS))
        tiny.loss(attached, batch).backward()  # type: ignore[no-untyped-call]
    except Exception:  # PEFT raises many kinds; the layer is not supported
        return False
    return any(p.grad is not None for p in trainable_parameters(attached).values())
