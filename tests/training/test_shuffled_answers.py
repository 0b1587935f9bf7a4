"""Training on shuffled answers finds a base that sees them, and no other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForCausalLM

from bakeoff.core.trial import Segment, Trial
from bakeoff.testing.tiny import rows, tokenizer, write_jsonl
from bakeoff.testing.trials import make_trial
from bakeoff.training.preflight.shuffled_answers import shuffle_answers, train_on_shuffled
from bakeoff.training.setup import TrainingSetup, build_setup, prepare_process

OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {"columns": {"prompt": "{label} :", "completion": "{place}"}},
    "choice": {
        "columns": {"prompt": "{text}", "choices": "{label}, {place}", "answer": "{label}"},
        "answer": "text",
        "normalise": "sum",
    },
    "classify": {
        "columns": {"text": "text", "label": "label"},
        "labels": ["lights", "music", "timer"],
    },
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study whose answers are one of eight places, equally often."""
    (tmp_path / "data").mkdir()
    values = [{**row, "place": json.loads(row["json"])["place"]} for row in rows()]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", values)
    return tmp_path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A RoBERTa that is loaded as a causal LM: it attends to both sides."""
    torch.manual_seed(0)
    words = tokenizer()
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        pad_token_id=0,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
    )
    RobertaForCausalLM(config).save_pretrained(tmp_path / "encoder")
    words.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def trial_of(task: str, method: str = "full") -> Trial:
    trial = make_trial(method, "sft", rate=1e-2)
    options = {**OPTIONS[task], "max_length": 64, "max_new_tokens": 4}
    changed = dataclasses.replace(trial.conditions, task=task, task_options=options)
    return dataclasses.replace(trial, conditions=changed)


def train(base: Path, study: Path, task: str, steps: int) -> dict[str, Any]:
    segment = Segment((trial_of(task),), 0, steps, str(study), str(base), None)
    return train_on_shuffled({"segment": segment.to_json(), "steps": steps})


def tiny_setup(base: Path, study: Path, task: str) -> TrainingSetup:
    trial = trial_of(task, "lora")
    prepare_process(trial.conditions)
    return build_setup([trial], str(base), study / "data")


def split_example(example: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the context and the supervised tokens."""
    context = len([label for label in example.labels if label < 0])
    return example.tokens[:context], example.labels[context:]


def test_encoder_is_found(encoder: Path, study: Path) -> None:
    """An encoder copies the shuffled answers; the check for causality is not needed for that."""
    found = train(encoder, study, "sft", 120)
    assert found["seen"], found
    assert found["steps"] <= 120


@pytest.mark.parametrize("task", OPTIONS)
def test_honest_base_is_not(task: str, tiny_llama: Path, study: Path) -> None:
    """A causal base learns nothing from shuffled answers: its loss stays above their entropy."""
    found = train(tiny_llama, study, task, 40)
    assert not found["seen"], found


def test_answers_are_permuted(tiny_llama: Path, study: Path) -> None:
    """Answers keep their frequencies, whose entropy is the bound; the rows get others' answers."""
    setup = tiny_setup(tiny_llama, study, "sft")
    shuffled = shuffle_answers(setup, "validation", 1000)
    assert math.isclose(shuffled.entropy, math.log(8))
    after = [split_example(e)[1] for e in shuffled.examples]
    first = [split_example(e)[1][:1] for e in setup.examples("validation")]
    assert sorted(after) == sorted(first)  # one token tells the places apart: the rest is cut
    assert [e.labels[-1] for e in shuffled.examples] == [e.tokens[-1] for e in shuffled.examples]


def test_classes_are_permuted(tiny_bert: Path, study: Path) -> None:
    """A classifier's labels move to other texts."""
    setup = tiny_setup(tiny_bert, study, "classify")
    shuffled = shuffle_answers(setup, "train", 1000)
    assert math.isclose(shuffled.entropy, math.log(3))
    honest = {(e.tokens, e.labels) for e in setup.examples("train")}
    assert 0.1 < sum((e.tokens, e.labels) in honest for e in shuffled.examples) / 96 < 0.6


def test_choices_are_drawn(tiny_llama: Path, study: Path) -> None:
    """A multiple choice gets a random choice of its row: the entropy is that of the choice."""
    setup = tiny_setup(tiny_llama, study, "choice")
    shuffled = shuffle_answers(setup, "train", 1000)
    assert math.isclose(shuffled.entropy, math.log(2))
    right = sum(example in setup.examples("train") for example in shuffled.examples)
    assert 25 < right < 71
