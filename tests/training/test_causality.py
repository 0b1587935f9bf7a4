"""A base of `sft` and `choice` must not see later tokens; checked on real rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bakeoff.core.trial import Segment
from bakeoff.tasks import task_class
from bakeoff.testing.tiny import rows, tokenizer, write_splits
from bakeoff.testing.trials import make_trial
from bakeoff.training.preflight import causality
from bakeoff.training.preflight.checks import check_study

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**SIZES, "num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "mixtral": ("MixtralConfig", {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    "sliding": (
        "Gemma3TextConfig",
        {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    ),
    "roberta as decoder": ("RobertaConfig", {**SIZES, "is_decoder": True}),
}
NOT_CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("RobertaConfig", SIZES),
    "bert": ("BertConfig", SIZES),
    "electra": ("ElectraConfig", {**SIZES, "embedding_size": 32}),
    "xlnet": ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    "xlm": ("XLMConfig", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 99}),
}


def make_base(kind: str, values: dict[str, Any]) -> Any:
    config = getattr(transformers, kind)(vocab_size=99, pad_token_id=0, **values)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def find_issues(model: Any, precision: str) -> list[Any]:
    trial = make_trial("lora", "sft", precision=precision)
    model.requires_grad_(False).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    task = task_class("sft")(trial.conditions.task_options)
    return causality.check(model, task, tokenizer(), rows(), trial.conditions)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_base_passes(name: str, precision: str) -> None:
    """Rounding is no leak, in recurrent layers and mixtures of experts neither."""
    assert find_issues(make_base(*CAUSAL[name]), precision) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_bidirectional_base_found(name: str, precision: str) -> None:
    """A base that attends to both sides is found, in random weights too, where it sees little."""
    (issue,) = find_issues(make_base(*NOT_CAUSAL[name]), precision)
    assert issue.code == "base-not-causal"
    assert issue.fatal


def test_leak_of_training_step_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base whose plain pass is causal is refused if the training step's loss is not."""
    model = make_base(*CAUSAL["llama"])
    task = task_class("sft")
    plain = task.item_losses

    def leak(self: Any, model: Any, batch: Any) -> Any:
        sums, counts = plain(self, model, batch)
        return type(plain(self, model, batch))(sums + batch.inputs["input_ids"].sum(), counts)

    monkeypatch.setattr(task, "item_losses", leak)
    (issue,) = find_issues(model, "fp32")
    assert issue.code == "base-not-causal"


def test_encoder_found_for_choice() -> None:
    """Multiple choice reads the same predictions."""
    trial = make_trial("lora", "sft")
    columns = {"prompt": "text", "choices": "{label}, {template}", "answer": "label"}
    task = task_class("choice")({"columns": columns, "answer": "text", "max_length": 64})
    model = make_base(*NOT_CAUSAL["roberta"])
    found = causality.check(model, task, tokenizer(), rows(), trial.conditions)
    assert [issue.code for issue in found] == ["base-not-causal"]


def test_encoder_refused_before_training(tmp_path: Path) -> None:
    """A study on RoBERTa is refused with the reason; the hint leads to a base that works."""
    folder = tmp_path / "base"
    words = tokenizer()
    model = make_base(*NOT_CAUSAL["roberta"])
    model.resize_token_embeddings(len(words))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    write_splits(tmp_path / "data")
    (tmp_path / "data" / "test.jsonl").write_bytes(
        (tmp_path / "data" / "validation.jsonl").read_bytes()
    )
    trial = make_trial("lora", "sft")
    segment = Segment((trial,), 0, 1, str(tmp_path), str(folder), None)
    faults = check_study(segment.to_json())["faults"]
    first = next(f for f in faults if f["fatal"])
    assert first["code"] == "base-not-causal"
    assert "is_decoder" in first["what"]
    assert "Llama" in first["try_"]
