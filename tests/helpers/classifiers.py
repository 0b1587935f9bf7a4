"""Tiny random bases of many architectures for classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER = {**_BERT, "num_key_value_heads": 2}
ARCHITECTURES: Mapping[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "bert": ("BertConfig", _BERT, ("classifier",)),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
        ("pre_classifier", "classifier"),
    ),
    "roberta": ("RobertaConfig", _BERT, ("classifier",)),
    "albert": ("AlbertConfig", {**_BERT, "embedding_size": 16}, ("classifier",)),
    "electra": ("ElectraConfig", {**_BERT, "embedding_size": 32}, ("classifier",)),
    "deberta": (
        "DebertaV2Config",
        {**_BERT, "pooler_hidden_size": 32},
        ("pooler", "classifier"),
    ),
    "modernbert": (
        "ModernBertConfig",
        {**_BERT, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1},
        ("head", "classifier"),
    ),
    "bart": (
        "BartConfig",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
        },
        ("classification_head",),
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ("score",),
    ),
    "llama": ("LlamaConfig", _DECODER, ("score",)),
}
"""Name -> transformers' config class, its arguments, and the head of a classifier on it."""


def make_classifier(name: str, labels: int = 2, words: int = 99) -> Any:
    """Return a random classifier of this architecture."""
    kind, values, _ = ARCHITECTURES[name]
    config = getattr(transformers, kind)(
        vocab_size=words, pad_token_id=0, num_labels=labels, **values
    )
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def save_headless(name: str, folder: Path) -> Path:
    """Write the base of a classifier alone; return the folder."""
    model = make_classifier(name)
    getattr(model, model.base_model_prefix).save_pretrained(folder)
    return folder


def save_finished(name: str, folder: Path, labels: int = 2) -> Path:
    """Write a whole classifier; return the folder."""
    make_classifier(name, labels).save_pretrained(folder)
    return folder
