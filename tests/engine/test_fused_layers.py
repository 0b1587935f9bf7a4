"""Fused frozen layers compute what the base's own code computes, in fewer operations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama import modeling_llama

from bakeoff.engine import fused_layers
from bakeoff.engine.accelerators import Switches
from bakeoff.testing.trials import build_tiny_setup, disable_dropout, make_trial, train_steps

OFF = Switches.all_off()
ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False, fused=True)


class Operations(TorchDispatchMode):
    """Counts the operations of ATen."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(f)] += 1
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["lora", "ln_tuning", "full"])
def test_fused_lanes_match_sequential_trials(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    trials = [make_trial(method, "sft", seed=s, rate=1e-3 * (1 + s)) for s in range(2)]
    sides = [
        train_steps(disable_dropout(build_tiny_setup(t, tiny_llama, tmp_path, OFF)), 5)
        for t in trials
    ]
    plain = torch.cat([s.gradients for s in sides])
    fused = train_steps(disable_dropout(build_tiny_setup(trials, tiny_llama, tmp_path, ON)), 5)
    off = (fused.gradients - plain).norm(dim=1) / plain.norm(dim=1)
    assert float(off.max()) < 1e-5
    torch.testing.assert_close(fused.losses, torch.cat([s.losses for s in sides], 1))


def test_trained_norms_stay_as_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    for method, trained in (("lora", 0), ("full", 5), ("ln_tuning", 5)):
        at = build_tiny_setup(make_trial(method, "sft"), tiny_llama, tmp_path, ON)
        norms = [m for m in at.model.modules() if isinstance(m, modeling_llama.LlamaRMSNorm)]
        fused = [isinstance(m.forward, fused_layers.FusedRmsNorm) for m in norms]
        assert fused == [not m.weight.requires_grad for m in norms]
        assert fused.count(False) == trained


def test_fewer_operations_in_the_rotation(tiny_llama: Path, tmp_path: Path) -> None:
    counts = []
    for switches in (dataclasses.replace(ON, fused=False), ON):
        at = build_tiny_setup(make_trial("lora", "sft"), tiny_llama, tmp_path, switches)
        with Operations() as seen:
            train_steps(at, 1)
        counts.append(seen.count)
    plain, fused = counts
    assert fused["aten.neg.default"] == 1, "once for all layers"
    assert plain["aten.neg.default"] == 2 * 2 * 2, "two tensors, two layers, forward and backward"


def test_norm_with_another_formula_stays(tiny_llama: Path) -> None:
    class OtherRMSNorm(modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) * (1 + 1 / self.weight)

    model = nn.Sequential(modeling_llama.LlamaRMSNorm(8), OtherRMSNorm(8)).requires_grad_(False)
    assert fused_layers.fuse_frozen_layers(model) == 1
    assert isinstance(model[0].forward, fused_layers.FusedRmsNorm)
    assert not isinstance(model[1].forward, fused_layers.FusedRmsNorm)


def test_rotation_with_another_formula_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    config = modeling_llama.LlamaConfig(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8
    )
    attention = modeling_llama.LlamaAttention(config, 0).requires_grad_(False)
    assert fused_layers.fuse_frozen_layers(attention) == 1
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    attention = modeling_llama.LlamaAttention(config, 0).requires_grad_(False)
    assert fused_layers.fuse_frozen_layers(attention) == 0
