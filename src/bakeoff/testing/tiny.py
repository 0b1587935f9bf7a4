"""Tiny random models and learnable rows, on which tests train in seconds without a hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

WORDS = {
    "lights": ["turn on the lamp", "switch the lamp off", "make the lamp bright", "dim the lamp"],
    "music": ["play a song", "stop the song", "next song please", "louder song"],
    "timer": ["set a timer", "cancel the timer", "how long is the timer", "timer for tea"],
}
PLACES = ["kitchen", "bedroom", "garage", "office", "attic", "hall", "study", "garden"]


def rows() -> list[dict[str, str]]:
    """Return 96 rows: 3 intents x 4 templates x 8 places."""
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


def write_jsonl(path: Path, values: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object per line; return the path."""
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


def write_splits(folder: Path) -> Path:
    """Write the rows as a study's frozen splits; return the folder."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", rows())
    return folder


def tokenizer() -> PreTrainedTokenizerBase:
    """Return a word-level tokenizer over the rows' words and JSON marks."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2}
    for row in rows():
        for text in (row["text"], row["json"], "Command : JSON"):
            for word, _ in split.pre_tokenize_str(text):
                vocabulary.setdefault(word, len(vocabulary))
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = split
    # JSON comes back as it was written: no spaces around its marks
    around = [decoders.Replace(x, mark) for mark in '{}":,' for x in (f" {mark}", f"{mark} ")]
    words.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), *around]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def save_bert(folder: Path, width: int = 32, spread: float = 0.02) -> Path:
    """Write a random BERT of two layers with its tokenizer; return the folder.

    ``spread`` is the standard deviation of its weights.
    """
    torch.manual_seed(0)
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        initializer_range=spread,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return _save(BertModel(config), words, folder)


def save_llama(folder: Path, width: int = 32, spread: float = 0.02) -> Path:
    """Write a random Llama of two layers with its tokenizer; return the folder.

    ``spread`` is the standard deviation of its weights.
    """
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        initializer_range=spread,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return _save(LlamaForCausalLM(config), words, folder)


def _save(model: Any, words: PreTrainedTokenizerBase, folder: Path) -> Path:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
