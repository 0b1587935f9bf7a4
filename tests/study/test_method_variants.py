"""One method under several configurations: `[method.NAME] like = "METHOD"`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bakeoff import api
from bakeoff.core.errors import UsageError
from bakeoff.core.trial import MethodEntry
from bakeoff.integrations.export_weights import export_weights
from bakeoff.methods import registry
from bakeoff.study.config import parse_spec
from bakeoff.study.planning.trials import rate_grid
from bakeoff.study.setup.methods import load_methods, restore_methods


def load(values: dict[str, Any], folder: Path) -> dict[str, MethodEntry]:
    return {e.name: e for e in load_methods(parse_spec(values), folder)}


def with_methods(
    values: dict[str, Any], tables: dict[str, Any], contenders: list[str], control: str = "lora"
) -> dict[str, Any]:
    values["methods"] = {"control": control, "contenders": contenders}
    return {**values, "method": tables}


def test_variant_has_own_arguments(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A variant is the method with other arguments, under its own name."""
    tables = {
        "lora": {"config": {"lora_dropout": 0.1}},
        "lora-r64": {"like": "lora", "config": {"r": 64}},
        "twin": {"like": "lora"},
    }
    values = with_methods(study_values, tables, ["lora-r64", "twin"])
    found = load(values, tmp_path)
    lora, large = found["lora"], found["lora-r64"]
    assert (large.title, found["twin"].title) == ("LoRA (r = 64)", "twin")
    assert large.config == {**lora.config, "r": 64}
    assert large.config["lora_dropout"] == 0.1
    assert (large.learning_rate, large.size) == (lora.learning_rate, lora.size)
    assert found["twin"].config == lora.config


def test_variant_as_control_and_of_a_variant(study_values: dict[str, Any], tmp_path: Path) -> None:
    """The control may be a variant, and a variant of a variant has the arguments of both."""
    tables = {
        "large": {"like": "lora", "config": {"r": 64}},
        "larger": {"like": "large", "config": {"lora_alpha": 64}},
    }
    found = load(with_methods(study_values, tables, ["larger"], control="large"), tmp_path)
    assert list(found) == ["large", "larger"]
    assert (found["larger"].config["r"], found["larger"].config["lora_alpha"]) == (64, 64)


def test_variant_of_own_file(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A variant may be like a method file, or like a table that is no method of the study."""
    text = registry.read_source("lora", tmp_path)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    peft = {"kind": "peft", "peft": "LoraConfig", "config": {"r": 4}}
    tables = {
        "a": {"like": "mine.toml", "config": {"r": 2}},
        "b": {"like": "own", "config": {"r": 8}},
        "own": peft,
    }
    found = load(with_methods(study_values, tables, ["a", "b"]), tmp_path)
    assert [found[name].config["r"] for name in ("a", "b")] == [2, 8]


def test_variant_grid(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A variant has the stated rates of its method, unless it states its own."""
    study_values["budget"]["settings"] = 1
    tables = {
        "lora": {"learning_rates": [1e-3]},
        "same": {"like": "lora"},
        "other": {"like": "lora", "learning_rates": [2e-3]},
    }
    spec = parse_spec(with_methods(study_values, tables, ["same", "other"]))
    assert [rate_grid(e, spec) for e in load_methods(spec, tmp_path)] == [
        (1e-3,), (1e-3,), (2e-3,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tables", "contender", "says"),
    [
        ({"a": {"like": "b"}, "b": {"like": "a"}}, "a", "is like itself: a, b, a"),
        ({"a": {"like": "a"}}, "a", "is like itself: a, a"),
        ({"a": {"like": "lorra"}}, "a", "No method named 'lorra'.*did you mean 'lora'"),
        ({"large": {"like": "lora"}, "a": {"like": "larg"}}, "a", "belongs to no method"),
        ({"dora": {"like": "lora"}}, "dora", "like-replaces-method"),
        ({"a": {"like": "lora", "kind": "peft", "peft": "LoraConfig"}}, "a", "either kind"),
    ],
)  # fmt: skip
def test_wrong_variant_refused(
    tables: dict[str, Any], contender: str, says: str, study_values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"(?s){says}"):
        load(with_methods(study_values, tables, [contender]), tmp_path)


def test_near_match_names_own_variants(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A misspelt name is compared with the study's own variants, too."""
    tables = {"lora-large": {"like": "lora"}, "a": {"like": "lora-larg"}}
    values = with_methods(study_values, tables, ["a", "lora-large"])
    with pytest.raises(UsageError, match="did you mean 'lora-large'"):
        load(values, tmp_path)


def test_started_study_keeps_catalog_values(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A study has the defaults that it was started with, but the user's own file as it is now."""
    (tmp_path / "mine.toml").write_text(registry.read_source("lora", tmp_path), encoding="utf-8")
    spec = parse_spec(with_methods(study_values, {}, ["mine.toml"]))
    entries = load_methods(spec, tmp_path)
    before = {e.name: {**dataclasses.asdict(e), "config": {"r": 8}} for e in entries}
    assert restore_methods(entries, spec, {}) == entries
    lora, mine = restore_methods(entries, spec, {"methods": before})
    assert lora.config == {"r": 8}
    assert mine.config["r"] == 32


def test_variants_in_study(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Variants race, are compared and are exported under their own names; sizes are matched."""
    tables = {
        "lora": {"config": {"r": 4}},
        "lora-r8": {"like": "lora", "config": {"r": 8}},
        "dora-2": {"like": "dora"},
    }
    values = with_methods(study_values, tables, ["lora-r8", "dora-2"])
    values["budget"] |= {
        "settings": 1, "seeds": 1, "steps": 2, "race": "off", "match": "parameters",
    }  # fmt: skip
    report = api.run(parse_spec(values), tmp_path, tmp_path / "out")
    assert [m["title"] for m in report["methods"]] == ["LoRA", "LoRA (r = 8)", "dora-2"]
    sizes = {s["method"]: s for s in report["sizes"]}
    assert sizes["lora-r8"]["note"] == "you chose its size"
    assert sizes["lora-r8"]["parameters"] == 2 * sizes["lora"]["parameters"]
    assert sizes["dora-2"]["value"] == 3
    made = export_weights(tmp_path / "out", tmp_path / "exported", "lora-r8")
    assert made.differing == 0
    assert "LoRA (r = 8)" in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
