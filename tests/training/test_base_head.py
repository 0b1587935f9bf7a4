"""The head of a classifier on many architectures: its layers, their training, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifiers import ARCHITECTURES, save_finished, save_headless
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from bakeoff.core.errors import PreflightError
from bakeoff.methods import load_saved, registry
from bakeoff.methods.hook import (
    AttachContext,
    Incompatible,
    SaveContext,
    build_hook,
    trainable_parameters,
)
from bakeoff.tasks._base import is_in_head
from bakeoff.tasks.classify import Classify
from bakeoff.testing.trials import make_trial
from bakeoff.training.preflight.base_head import find_head
from bakeoff.training.setup import parameter_groups

METHODS = ("lora", "dora", "ia3", "head", "full", "bitfit", "ln_tuning")
NO_LAYERS = {("llama", "bitfit"), ("modernbert", "bitfit"), ("modernbert", "ia3")}
"""No bias terms; no key and value projections of their own."""
TOKENS = torch.arange(3, 19).view(2, 8)
TOKENS[:, -1] = 2  # BART reads the state of its end token


def options_on(folder: Path, labels: int = 3) -> dict[str, Any]:
    """Return the options of a classifier on this base, as a study resolves them."""
    options: dict[str, Any] = {"labels": [str(i) for i in range(labels)]}
    request = {"task": "classify", "options": options, "path": str(folder)}
    answer = find_head({**request, "revision": None, "trusted": False})
    assert answer.get("error") is None, answer
    return options if answer["head"] is None else {**options, "head": answer["head"]}


def load(options: dict[str, Any], folder: Path, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    model = Classify(options).load_model(str(folder), None).requires_grad_(False)
    model.config.pad_token_id = 0
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_found(name: str, tmp_path: Path) -> None:
    """The head is what is not in the base's files; the usual one needs no option."""
    expected = ARCHITECTURES[name][2]
    headless = options_on(save_headless(name, tmp_path / "headless"))
    assert Classify(headless).heads == (expected if "head" in headless else ("classifier", "score"))
    assert ("head" in headless) == (len(expected) > 1 or name == "bart")
    finished = options_on(save_finished(name, tmp_path / "finished"))
    assert finished["head"] == {"modules": list(expected), "replaced": True}


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_finished_head_replaced(name: str, labels: int, tmp_path: Path) -> None:
    """A finished classifier gets the head that its bare base gets, whatever its labels were."""
    bare, finished = tmp_path / "headless", tmp_path / "finished"
    save_headless(name, bare)
    save_finished(name, finished, 2)
    options = options_on(finished, labels)
    of_bare = load(options_on(bare, labels), bare).state_dict()
    of_finished = load(options, finished).state_dict()
    assert of_bare.keys() == of_finished.keys()
    for key, value in of_bare.items():
        assert torch.equal(value, of_finished[key]), key
    other = load(options, finished, seed=6).state_dict()
    head = [k for k in other if is_in_head(k, Classify(options).heads) and k.endswith("weight")]
    assert any(not torch.equal(other[k], of_finished[k]) for k in head)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_methods_train_head(name: str, method: str, tmp_path: Path) -> None:
    """Every method trains the whole head, and its files give the trained model back."""
    folder = save_headless(name, tmp_path / "base")
    options = options_on(folder)
    heads = Classify(options).heads
    entry = registry.load(method, Path())
    hook = build_hook(entry, dict(entry.config))
    context = AttachContext("SEQ_CLS", heads, 2, list, lambda n: iter(()), lambda m, b: TOKENS)
    if (name, method) in NO_LAYERS:
        with pytest.raises(Incompatible):
            hook.attach(load(options, folder), context)
        return
    model = hook.attach(load(options, folder), context)
    trained = trainable_parameters(model)
    for head in ARCHITECTURES[name][2]:
        assert any(head in n.split(".") for n in trained), head
    for head_layer in ("lora_A", "lora_magnitude_vector", "ia3_l"):
        assert not any(head_layer in n and is_in_head(n, heads) for n in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model.train()
    for _ in range(2):
        torch.manual_seed(0)
        loss = model(input_ids=TOKENS, labels=torch.tensor([0, 1])).loss
        loss.backward()
        assert all(p.grad is not None for n, p in trained.items() if is_in_head(n, heads))
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    hook.save(model, tmp_path / "saved", SaveContext("base", 0, None))
    # a base with another head: the files must hold all of the trained one
    again = load_saved.load_onto(load(options, folder, seed=9), tmp_path / "saved", hook.saved_as)
    assert torch.allclose(logits(again.eval()), logits(model), atol=1e-6)


def test_head_rate_for_whole_head(tmp_path: Path) -> None:
    """`task.head_learning_rate` applies to all layers of the head, `pre_classifier` too."""
    folder = save_headless("distilbert", tmp_path)
    task = Classify(options_on(folder))
    model = load(task.options, folder).requires_grad_(True)
    trial = make_trial("full", "classify", head_learning_rate=0.5)
    groups = parameter_groups(model, task, trial)
    assert {n.split(".")[0] for n in groups[-1].names} == {"pre_classifier", "classifier"}
    assert groups[-1].rate(trial) == 0.5


def test_missing_pooler_is_head(tmp_path: Path) -> None:
    """A pooler that the files lack is drawn at random, so every method trains it."""
    words = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(intermediate_size=64, **words)).save_pretrained(tmp_path)
    assert options_on(tmp_path)["head"] == {"modules": ["pooler", "classifier"], "replaced": False}


def test_pretrained_layer_after_base_is_kept(tmp_path: Path) -> None:
    """ModernBERT's masked-LM files have the layer before the classifier: it stays as it is."""
    config = ModernBertConfig(vocab_size=99, pad_token_id=0, **ARCHITECTURES["modernbert"][1])
    ModernBertForMaskedLM(config).save_pretrained(tmp_path)
    assert "head" not in options_on(tmp_path)


def test_other_shapes_in_base_refused(tmp_path: Path) -> None:
    """Only the head may have another shape in the files."""
    folder = save_finished("bert", tmp_path)
    options = options_on(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"intermediate_size": 64', '"intermediate_size": 48')
    )
    with pytest.raises(PreflightError) as refused:
        load(options, folder)
    assert refused.value.code == "base-incomplete"
    assert "shape" in str(refused.value)
