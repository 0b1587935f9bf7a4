"""Tiny models and data that every test can train in a second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = {
    "lights": ["turn on the lamp", "switch the lamp off", "make the lamp bright", "dim the lamp"],
    "music": ["play a song", "stop the song", "next song please", "louder song"],
    "timer": ["set a timer", "cancel the timer", "how long is the timer", "timer for tea"],
}
PLACES = ["kitchen", "bedroom", "garage", "office", "attic", "hall", "study", "garden"]


def rows() -> list[dict[str, str]]:
    """96 rows: 3 intents x 4 templates x 8 places."""
    return [
        {
            "text": f"{template} in the {place}",
            "label": intent,
            "json": json.dumps({"intent": intent, "place": place}, separators=(",", ":")),
            "template": template,
        }
        for intent, templates in WORDS.items()
        for template in templates
        for place in PLACES
    ]


def write_jsonl(path: Path, values: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


def write_splits(folder: Path) -> Path:
    """Lay the rows down as a study's frozen splits."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", rows())
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer over the rows' words and JSON marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2}
    for row in rows():
        for text in (row["text"], row["json"], "Command : JSON"):
            for word, _ in split.pre_tokenize_str(text):
                vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A random BERT of two layers, 32 wide."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("tiny-bert")
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A random Llama of two layers, 32 wide."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bases(tiny_bert: Path, tiny_llama: Path) -> dict[str, Path]:
    """The base that each task is tried on."""
    return {"classify": tiny_bert, "sft": tiny_llama}


@pytest.fixture
def study_values(tiny_bert: Path, tmp_path: Path) -> dict[str, Any]:
    """A study that trains in seconds: two methods, two settings, two seeds."""
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    return {
        "name": "tiny",
        "base": {"model": str(tiny_bert)},
        "data": {"train": str(data)},
        "task": {"kind": "classify", "max_length": 32},
        "methods": {"control": "lora", "contenders": ["ia3"]},
        "method": {
            "ia3": {
                "config": {
                    "target_modules": ["key", "value", "output.dense"],
                    "feedforward_modules": ["output.dense"],
                }
            }
        },
        "budget": {"steps": 6, "batch_size": 8, "settings": 2, "seeds": 2, "validations": 2},
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
    }
