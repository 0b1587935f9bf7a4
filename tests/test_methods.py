"""Every catalog method keeps the contract: trains, leaves the base alone, repeats, reloads."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from benches import OPTIONS, build, losses, make_trial
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bakeoff.assemble import Bench
from bakeoff.errors import UsageError
from bakeoff.methods import registry
from bakeoff.methods.hook import Finished, Incompatible, trainable

RATE = "learning_rate = {prior = 1, why = 'x'}\n"
NO_HEAD = {("head", "sft")}
CASES = [c for c in itertools.product(registry.names(), OPTIONS) if c not in NO_HEAD]


def logits(model: Any, at: Bench) -> torch.Tensor:
    batch = at.task.batch(at.examples("validation")[:8], 0, "cpu")
    model.eval()
    with torch.no_grad():
        out: torch.Tensor = model(**batch.inputs).logits
    return out


@pytest.mark.parametrize(("method", "task"), CASES)
def test_the_contract(method: str, task: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases[task]
    trial = make_trial(method, task)
    at = build(trial, base, tmp_path)
    trained = trainable(at.model)
    assert trained
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {n: p.clone() for n, p in at.model.named_parameters() if not p.requires_grad}
    taken = losses(at, 30)
    assert sum(taken[-5:]) < sum(taken[:5]), "the loss did not fall"
    for name, before in frozen.items():
        assert torch.equal(at.model.get_parameter(name), before), f"{name} was frozen and changed"

    again = build(trial, base, tmp_path)
    assert losses(again, 3) == taken[:3], "the same seed gave other bits"
    other = build(dataclasses.replace(trial, seed=1), base, tmp_path)
    assert losses(other, 3) != taken[:3]

    folder = tmp_path / at.hook.saved_as
    at.hook.save(
        at.model, folder, Finished(str(base), 0, at.starts[0].trained if at.starts else None)
    )
    torch.testing.assert_close(logits(reload(at, base, folder), at), logits(at.model, at))


def reload(at: Bench, base: Path, folder: Path) -> Any:
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
        build(make_trial("head", "sft"), tiny_llama, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tittle = 'x'", "unknown key 'tittle' (did you mean 'title'?)"),
        ("title = 'x'", "lacks the table [learning_rate]"),
        ("[learning_rate]\nprior = 1\nwhy = 'x'", "must give `peft`"),
        (f"{RATE}peft = 'A'\nfamily = 'x'", "has the family 'x'"),
        (f"{RATE}peft = 'A'\ntuning.r = [1]", "`values` and `why` in [tuning.r]"),
        (f"{RATE}peft = 'A'\nsize.argument = 'r'", "sizes by 'r'"),
        (f"{RATE}peft = 'A'\nsize.arguments = 'r'", "did you mean 'argument'?"),
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
