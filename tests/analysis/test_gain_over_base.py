"""The untouched base: its score on test, and what each method gained over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.records import final, hits, make_record

import bakeoff
from bakeoff.analysis.summary import summarise
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import SplitScores


def trained(base: list[float] | None, right: int = 120) -> StudyRecord:
    trials = final("lora", {seed: hits(right, 200) for seed in (1, 2, 3)})
    scores = None if base is None else SplitScores(tuple(base), ("",) * len(base), None)
    return make_record(trials, ("lora",), base_scores=scores)


def summed(record: StudyRecord) -> dict[str, Any]:
    return summarise(record, np.random.default_rng(0))


def test_gain_paired_by_item() -> None:
    """The gain over the base is paired by item."""
    found = summed(trained(hits(60, 200)))
    assert found["base"]["score"]["estimate"] == pytest.approx(0.3)
    assert found["base"]["n_items"] == 200
    assert found["base"]["score"]["low"] < 0.3 < found["base"]["score"]["high"]
    gain = found["methods"][0]["gain"]
    assert gain["estimate"] == pytest.approx(0.3)
    # the 200 differences are 60 ones, so their mean has the standard error sqrt(.3 * .7 / 200)
    error = np.sqrt(0.3 * 0.7 / 200)
    assert (gain["high"] - gain["low"]) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert not any("untouched base" in w for w in found["warnings"])


def test_no_gain_over_base_leads() -> None:
    """A control that is no better than the base model is what the report leads with."""
    found = summed(trained(hits(119, 200)))
    assert found["recommendation"]["method"] is None
    assert found["recommendation"]["sentence"].startswith(
        "Nothing was learnt: LoRA, the control, scores 60.0 points, not surely better than the "
        "base model without fine-tuning, 59.5 points ("
    )


def test_no_base_score_is_none() -> None:
    found = summed(trained(None))
    assert found["base"] is None
    assert found["methods"][0]["gain"] is None
    assert not any("untouched base" in w for w in found["warnings"])


def sft(study_values: dict[str, Any], model: Path) -> bakeoff.StudySpec:
    study_values["base"] = {"model": str(model)}
    study_values["task"] = {"kind": "sft", "max_length": 64, "max_new_tokens": 4}
    study_values["data"]["columns"] = {"prompt": "{text}\n", "completion": "{label}"}
    del study_values["method"]["ia3"]["config"]
    return bakeoff.parse_spec(study_values)


def test_base_scored_once(study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    """A study scores the base once."""
    spec = sft(study_values, tiny_llama)
    found = bakeoff.run(spec, tmp_path, tmp_path / "out")
    assert found["base"]["n_items"] == found["study"]["n_test_items"]
    # a base of random weights answers nothing right
    assert found["base"]["score"]["estimate"] == 0.0
    again = bakeoff.run(spec, tmp_path, tmp_path / "out")
    assert again["base"] == found["base"]
    log = (tmp_path / "out" / "log.jsonl").read_text()
    assert log.count('"title": "Base model"') == 1


def test_fresh_head_has_no_base_score(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A randomly initialised output layer has no score before training."""
    found = bakeoff.run(bakeoff.parse_spec(study_values), tmp_path, tmp_path / "out")
    assert found["base"] is None
