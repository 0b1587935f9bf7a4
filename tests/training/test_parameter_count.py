"""Sizes: how many parameters a method trains, counted without weights, and made equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from bakeoff import api
from bakeoff.core.errors import UsageError
from bakeoff.methods import registry
from bakeoff.methods.hook import Incompatible, trainable_parameters
from bakeoff.study.config import parse_spec
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training.preflight import parameter_count

STEPS = 30


def llama(folder: Path, layers: int) -> Path:
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> parameter_count.Architecture:
    """A Llama of three layers, 64 wide."""
    return parameter_count.load_architecture(
        str(llama(tmp_path_factory.mktemp("llama"), 3)), "CAUSAL_LM", ()
    )


def entry(name: str) -> Any:
    return registry.load(name, Path())


def test_counts_by_hand(shape: parameter_count.Architecture) -> None:
    # r (in + out) for q, k, v, o, gate, up, down of three layers
    widths = (64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3
    lora = entry("lora")
    assert parameter_count.count(lora, lora.config, shape, STEPS) == 3 * 32 * widths
    assert parameter_count.count(lora, {**lora.config, "r": 3}, shape, STEPS) == 3 * 3 * widths
    # every weight: tied embeddings, layers with two norms each, the last norm
    matrices = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3
    full = entry("full")
    assert parameter_count.count(full, {}, shape, STEPS) == 50 * 64 + 3 * (matrices + 2 * 64) + 64
    # ten virtual tokens: keys and values of two heads, 16 wide, in three layers
    prefix = entry("prefix_tuning")
    assert parameter_count.count(prefix, prefix.config, shape, STEPS) == 10 * 3 * 2 * 2 * 16


@pytest.mark.parametrize("method", ["psoft", "pissa", "osf", "mica", "lora_fa", "vera", "shira"])
def test_unattachable_without_weights_is_counted(
    method: str, tmp_path: Path, shape: parameter_count.Architecture
) -> None:
    """A method that cannot be attached without weights is counted nevertheless."""
    of = entry(method)
    real = LlamaForCausalLM(shape.config).requires_grad_(False)
    model = parameter_count.build_hook(of, of.config).attach(
        real, parameter_count.fake_context(shape, STEPS)
    )
    trained = sum(p.numel() for p in trainable_parameters(model).values())
    assert parameter_count.count(of, of.config, shape, STEPS) == trained


def test_task_head_not_counted(tiny_bert: Path, tmp_path: Path) -> None:
    """The head of a task is not counted."""
    shape = parameter_count.load_architecture(str(tiny_bert), "SEQ_CLS", ("classifier",))
    lora = entry("lora")
    at = build_tiny_setup(make_trial("lora", "classify"), tiny_bert, tmp_path)
    without = sum(
        p.numel() for n, p in trainable_parameters(at.model).items() if "classifier" not in n
    )
    assert parameter_count.count(lora, lora.config, shape, STEPS) == without
    other = parameter_count.load_architecture(str(tiny_bert), "SEQ_CLS", ("nothing",))
    with pytest.raises(Incompatible, match="no output layer"):
        parameter_count.count(entry("head"), {}, other, STEPS)


@pytest.mark.parametrize("method", ["dora", "gralora", "hira", "loha", "vblora", "fourierft"])
def test_size_found_within_tenth(method: str, shape: parameter_count.Architecture) -> None:
    """A size is found within ten percent."""
    of = entry(method)
    lora = entry("lora")
    target = parameter_count.count(lora, {**lora.config, "r": 8}, shape, STEPS)
    found = parameter_count.find_size(of, of.config, target, shape, STEPS)
    assert found is not None
    assert abs(found.parameters / target - 1) < 0.1
    again = {**of.config, of.size["argument"]: found.value}
    assert parameter_count.count(of, again, shape, STEPS) == found.parameters


def test_size_stops_at_base_width(shape: parameter_count.Architecture) -> None:
    """A target that no rank reaches gives the largest rank that is used, the base's width."""
    lora = entry("lora")
    found = parameter_count.find_size(lora, lora.config, 10**9, shape, STEPS)
    assert found is not None
    assert found.value == 64


def test_method_without_size_unchanged(shape: parameter_count.Architecture) -> None:
    """A method without a size is left unchanged."""
    assert parameter_count.find_size(entry("full"), {}, 1000, shape, STEPS) is None


@pytest.fixture
def equal_study(study_values: dict[str, Any]) -> dict[str, Any]:
    study_values["methods"]["contenders"] = ["dora", "ia3"]
    study_values["budget"] |= {"match": "parameters", "settings": 1, "seeds": 1, "steps": 2}
    return study_values


def test_study_at_equal_parameters(equal_study: dict[str, Any], tmp_path: Path) -> None:
    """A study matches the parameters of all methods."""
    report = api.run(parse_spec(equal_study), tmp_path, tmp_path / "out")
    sizes = {s["method"]: s for s in report["sizes"]}
    assert sizes["lora"]["note"] == "sets the size"
    assert sizes["lora"]["off"] == 0
    assert sizes["dora"]["matched"]
    assert sizes["dora"]["value"] == 31, "DoRA trains a magnitude beside each output"
    assert sizes["ia3"]["note"] == "it has no size to choose"
    assert not sizes["ia3"]["matched"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "trainable parameters each" in page
    trained = {m["method"]: m["cost"]["trainable_parameters"] for m in report["methods"]}
    head = trained["lora"] - sizes["lora"]["parameters"]
    assert trained["dora"] == sizes["dora"]["parameters"] + head
    assert api.run(parse_spec(equal_study), tmp_path, tmp_path / "out")["sizes"] == report["sizes"]


def test_plan_shows_sizes(equal_study: dict[str, Any], tmp_path: Path) -> None:
    """The plan shows the sizes."""
    equal_study["budget"]["parameters"] = 4000
    equal_study["methods"]["contenders"] = ["oft"]
    equal_study["method"] = {"oft": {"config": {"oft_block_size": 8}}}
    overview = api.overview(parse_spec(equal_study), tmp_path)
    lora = overview["sizes"][0]
    assert (lora["target"], lora["note"]) == (4000, None)
    assert abs(lora["parameters"] / 4000 - 1) < 0.1 or lora["value"] == 1
    oft = overview["sizes"][1]
    assert (oft["value"], oft["note"]) == (None, "you chose its size")


def test_target_without_matching_refused(study_values: dict[str, Any]) -> None:
    """A target without matching is refused."""
    study_values["budget"]["parameters"] = 4000
    with pytest.raises(UsageError, match="budget.match"):
        parse_spec(study_values)
