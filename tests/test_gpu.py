"""The training half on a GPU: bf16, device memory, the same contract. Skipped without CUDA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import make_trial
from conftest import rows, write_jsonl
from test_methods import CASES

from bakeoff import preflight, segment
from bakeoff.trial import Segment, Trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def on_gpu(method: str, task: str) -> Trial:
    trial = make_trial(method, task)
    found = preflight.machine({"device": "auto", "precision": "auto", "threads": 1, "workers": 1})
    assert (found["device"], found["precision"]) == ("cuda:0", "bf16")
    changes: dict[str, Any] = {"device": found["device"], "precision": found["precision"]}
    if task == "sft":
        changes["metric"] = "json_match"
    return dataclasses.replace(trial, conditions=dataclasses.replace(trial.conditions, **changes))


@pytest.mark.parametrize(("method", "task"), CASES)
def test_a_trial_and_its_cost(
    method: str, task: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows())
    base = tiny_bert if task == "classify" else tiny_llama
    one = Segment((on_gpu(method, task),), 0, 30, str(tmp_path), str(base))
    (result,) = segment.run(one.to_json())["results"]
    assert result["status"] == "done", result["traceback"] or result["reason"]
    assert len(result["splits"]["test"]["scores"]) == len(rows())
    cost = preflight.probe(one.to_json())
    assert cost["status"] == "done", cost["reason"]
    assert cost["memory_kind"] == "device"
    assert cost["train_peak_bytes"] > cost["base_bytes"] > 0
