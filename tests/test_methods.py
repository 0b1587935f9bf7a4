"""Every catalog method keeps the contract: trains, leaves the base alone, repeats, reloads."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import rows, write_jsonl
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bakeoff import assemble
from bakeoff.errors import UsageError
from bakeoff.methods import registry
from bakeoff.methods.hooks import Incompatible, trainable
from bakeoff.trial import Conditions, Trial

TASKS: dict[str, dict[str, Any]] = {
    "classify": {
        "columns": {"text": "text", "label": "label"},
        "max_length": 32,
        "labels": ["lights", "music", "timer"],
    },
    "sft": {
        "columns": {"prompt": "Command : {text} JSON", "completion": "{json}"},
        "max_length": 64,
        "max_new_tokens": 4,
    },
}
NO_HEAD = {("head", "sft")}
CASES = [c for c in itertools.product(registry.names(), TASKS) if c not in NO_HEAD]


def a_trial(method: str, task: str, seed: int = 0) -> Trial:
    conditions = Conditions(
        base="b", revision=None, task=task, task_options=TASKS[task], metric="accuracy", data={},
        steps=30, batch_size=8, evaluation_batch_size=8, warmup=0.1, decay=0.3, weight_decay=0.0,
        clip=1.0, head_learning_rate=None, validations=1, device="cpu", precision="fp32", threads=1,
    )  # fmt: skip
    entry = registry.load(method, Path())
    return Trial(entry, {"learning_rate": 1e-2}, seed, "final", conditions)


def build(trial: Trial, base: Path, folder: Path) -> assemble.Bench:
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", rows())
    assemble.prepare_process(trial.conditions)
    return assemble.build(trial, str(base), folder)


def train(at: assemble.Bench, steps: int) -> list[float]:
    examples = at.task.encode(at.tokenizer, at.rows("train"))
    stepper = at.stepper()
    at.model.train()
    batches = at.train_batches(examples)
    return [float(stepper.step(i, next(batches))) for i in range(steps)]


def logits(model: Any, at: assemble.Bench) -> torch.Tensor:
    examples = at.task.encode(at.tokenizer, at.rows("validation"))[:8]
    model.eval()
    with torch.no_grad():
        out: torch.Tensor = model(**at.batch(examples).inputs).logits
    return out


@pytest.mark.parametrize(("method", "task"), CASES)
def test_the_contract(
    method: str, task: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    base = tiny_bert if task == "classify" else tiny_llama
    trial = a_trial(method, task)
    at = build(trial, base, tmp_path)
    trained = trainable(at.model)
    assert trained
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {n: p.clone() for n, p in at.model.named_parameters() if not p.requires_grad}
    losses = train(at, 30)
    assert sum(losses[-5:]) < sum(losses[:5]), "the loss did not fall"
    for name, before in frozen.items():
        assert torch.equal(at.model.get_parameter(name), before), f"{name} was frozen and changed"

    again = build(trial, base, tmp_path)
    assert train(again, 3) == losses[:3], "the same seed gave other bits"
    other = build(dataclasses.replace(trial, seed=1), base, tmp_path)
    assert train(other, 3) != losses[:3]

    folder = tmp_path / at.hook.saved_as
    at.hook.save(at.model, folder, str(base))
    torch.testing.assert_close(logits(reload(at, base, folder), at), logits(at.model, at))


def reload(at: assemble.Bench, base: Path, folder: Path) -> Any:
    """Load what was saved with plain transformers and peft, nothing of ours."""
    auto, arguments = {
        "classify": (AutoModelForSequenceClassification, {"num_labels": 3}),
        "sft": (AutoModelForCausalLM, {}),
    }[at.conditions.task]
    if at.hook.saved_as == "model":
        return auto.from_pretrained(folder)
    model = auto.from_pretrained(base, **arguments)
    if at.hook.saved_as == "adapter":
        return peft.PeftModel.from_pretrained(model, folder)
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    return model


def test_a_head_alone_is_incompatible_with_a_task_that_has_none(
    tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(Incompatible, match="no output layer of its own"):
        build(a_trial("head", "sft"), tiny_llama, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tittle = 'x'", "unknown key 'tittle' (did you mean 'title'?)"),
        ("title = 'x'", "lacks the table [learning_rate]"),
        ("[learning_rate]\nprior = 1\nwhy = 'x'", "either `peft`"),
        ("peft = 'A'\nhook = 'b'\n[learning_rate]\nprior = 1\nwhy = 'x'", "either `peft`"),
        ("peft = 'A'\n[learning_rate]\nprior = 1\nwhy = 'x'", "lacks the key 'title'"),
        ("x =", "is not TOML"),
    ],
)
def test_wrong_method_files_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        registry.parse("mine", text)
    assert says in error.value.cause


def test_every_entry_says_where_its_learning_rate_comes_from() -> None:
    for name in registry.names():
        entry = registry.load(name, Path())
        assert entry.learning_rate > 0
        assert len(entry.learning_rate_why) > 20
        assert entry.mechanism
        assert entry.family
