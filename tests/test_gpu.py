"""The training half on a GPU: bf16, device memory, the same contract. Skipped without CUDA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from core import CASES

from bakeoff import preflight, segment
from bakeoff.testing.tiny import rows, write_jsonl, write_splits
from bakeoff.testing.trials import make_trial
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
def test_a_trial_its_cost_and_a_pair_as_the_probe_decided(
    method: str, task: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(write_splits(tmp_path / "data") / "test.jsonl", rows())
    trial = on_gpu(method, task)
    one = Segment((trial,), 0, 30, str(tmp_path), str(bases[task]))
    (result,) = segment.run(one.to_json())["results"]
    assert result["status"] == "done", result["traceback"] or result["reason"]
    assert len(result["splits"]["test"]["scores"]) == len(rows())
    cost = preflight.probe(one.to_json())
    assert cost["status"] == "done", cost["reason"]
    assert cost["memory_kind"] == "device"
    assert cost["train_peak_bytes"] > cost["base_bytes"] > 0
    print(method, task, cost["engine"])  # what is off, and why: read with pytest -s
    pair = (trial, dataclasses.replace(trial, seed=trial.seed + 1))
    both = dataclasses.replace(one, trials=pair, engine=cost["engine"])
    for lane in segment.run(both.to_json())["results"]:
        assert lane["status"] == "done", lane["traceback"] or lane["reason"]
        assert lane["curve"][-1]["validation_loss"] == pytest.approx(
            result["curve"][-1]["validation_loss"], rel=0.5, abs=0.3
        )
