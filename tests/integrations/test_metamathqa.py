"""examples/metamathqa.toml: it states the task of PEFT's method_comparison, and it runs.

The sample under ``data/metamathqa`` has the columns and the way of writing answers of MetaMathQA
and GSM8K; its questions are our own.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from bakeoff import api
from bakeoff.data.rows import read_rows
from bakeoff.integrations.peft_benchmark import experiment as experiments
from bakeoff.study.config import flatten, parse_spec

TESTS = Path(__file__).parents[1]
EXAMPLE = TESTS.parent / "examples" / "metamathqa.toml"
LORA = TESTS / "data" / "hf" / "task" / "experiments" / "lora" / "llama-3.2-3B-rank32"
SAMPLE = {
    "train": "MetaMathQA.train.jsonl",
    "validation": "gsm8k.train.jsonl",
    "test": "gsm8k.test.jsonl",
}


@pytest.fixture
def example() -> dict[str, Any]:
    return tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))


def test_it_states_their_conditions(example: dict[str, Any]) -> None:
    """Held against the files that their run of plain LoRA reads."""
    theirs = experiments.read_experiment(LORA, None)
    stated = flatten(example)
    for key, value in flatten(experiments.study_tables(theirs)).items():
        # the one difference, with its reason, stands in the example
        expected = 2048 if key == "task.max_length" else value
        assert stated[key] == expected, key
    assert example["data"]["columns"] == experiments.data_columns(theirs)
    own = example["method"]["lora"]
    assert own["learning_rates"][2] == theirs.learning_rate
    assert theirs.adapter is not None
    assert own["config"] == {key: theirs.adapter[key] for key in ("r", "lora_alpha")}
    assert parse_spec(example).task.metric == "numeric"


def test_sample_runs_in_same_format(
    example: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """The example runs on a sample in the same format.

    Model, data and size swapped; prompts, columns, metric and schedule are the example's.
    """
    folder = TESTS / "data" / "metamathqa"
    example["base"]["model"] = str(tiny_llama)
    example["data"] |= {split: str(folder / name) for split, name in SAMPLE.items()}
    example["budget"] |= {"steps": 4, "settings": 5, "seeds": 1, "validations": 2, "race": "off"}
    example["budget"]["extend"] = 0
    example["task"]["max_new_tokens"] = 4
    example["methods"]["contenders"] = ["ia3"]
    example["engine"] |= {"executor": "inline", "threads": 1}
    report = api.run(parse_spec(example), tmp_path, tmp_path / "out")
    assert report["study"]["n_test_items"] == 5
    assert {m["status"] for m in report["methods"]} == {"done"}
    control = next(m for m in report["methods"] if m["method"] == "lora")
    rates = sorted(s["setting"]["learning_rate"] for s in control["settings"])
    assert rates == example["method"]["lora"]["learning_rates"]
    # what is trained on and asked is under one name for both data sets
    frozen = {s: read_rows(tmp_path / "out" / "data" / f"{s}.jsonl") for s in SAMPLE}
    raw = read_rows(folder / SAMPLE["test"])
    assert [r["query"] for r in frozen["test"]] == [r["question"] for r in raw]
    assert frozen["train"] == read_rows(folder / SAMPLE["train"])
    # the resolved file goes on with the study: nothing is renamed twice
    resumed = tomllib.loads((tmp_path / "out" / "study.toml").read_text())
    assert "rename" not in resumed["data"]
    again = api.run(parse_spec(resumed), tmp_path / "out", tmp_path / "out")
    assert again["methods"] == report["methods"]


def test_sample_references_are_numbers(example: dict[str, Any]) -> None:
    """Every reference of the sample is a number."""
    from bakeoff.metrics.builtin.numeric import read_number

    folder = TESTS / "data" / "metamathqa"
    marker = example["task"]["metric_options"]["marker"]
    found = [
        read_number(str(row.get("answer", row.get("response"))), marker)
        for name in SAMPLE.values()
        for row in read_rows(folder / name)
    ]
    assert None not in found
    assert 1008.0 in found
