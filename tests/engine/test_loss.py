"""The chunked loss is a setting of each model, not of the process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bakeoff.engine import loss
from bakeoff.engine.accelerators import Switches
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training.setup import TrainingSetup

OFF = Switches.all_off()
CHUNKED = dataclasses.replace(OFF, loss=True)


def losses(at: TrainingSetup) -> torch.Tensor:
    batch = at.task.batch(at.examples("validation")[:6], int(at.tokenizer.pad_token_id or 0), "cpu")
    with torch.no_grad():
        sums: torch.Tensor = at.task.item_losses(at.model.eval(), batch).sums
    return sums


def test_second_builder_keeps_loss(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder with other switches does not change how an earlier model's loss is computed."""
    unchunked: list[int] = []
    plain = loss.cross_entropy

    def counted(logits: Any, targets: Any) -> torch.Tensor:
        unchunked.append(len(targets))
        return plain(logits, targets)

    monkeypatch.setattr(loss, "cross_entropy", counted)
    trial = make_trial("lora", "sft")
    first = build_tiny_setup(trial, tiny_llama, tmp_path, CHUNKED)
    before = losses(first)
    assert not unchunked
    second = build_tiny_setup(trial, tiny_llama, tmp_path, OFF)
    after = losses(first)
    assert not unchunked
    assert torch.equal(before, after)
    torch.testing.assert_close(losses(second), before)
    assert len(unchunked) == 1
