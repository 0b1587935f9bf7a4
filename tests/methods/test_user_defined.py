"""Methods that users have already: PEFT config classes with arguments, and PEFT's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest

from bakeoff import api
from bakeoff.core.errors import UsageError
from bakeoff.methods import registry, user_defined
from bakeoff.study.config import parse_spec
from bakeoff.study.setup.open_study import load_methods


def test_peft_config_file_as_contender(study_values: dict[str, Any], tmp_path: Path) -> None:
    """An adapter_config.json of PEFT is a contender."""
    config = peft.LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=["key", "value"])
    config.save_pretrained(tmp_path / "mine")
    study_values["methods"]["contenders"] = ["mine"]
    study_values["method"] = {"mine": {"kind": "peft", "path": "mine/adapter_config.json"}}
    study_values["budget"] |= {"settings": 1, "seeds": 1, "steps": 2}
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    (row,) = (m for m in report["methods"] if m["method"] == "mine")
    assert row["status"] == "done"
    saved = next((tmp_path / "out" / "trials").glob("*/adapter/adapter_config.json"))
    kept = [json.loads(p.read_text()) for p in saved.parent.parent.parent.glob("*/adapter/*.json")]
    assert {"r": 4, "use_dora": True} in [{k: c[k] for k in ("r", "use_dora")} for c in kept]


def test_inherits_prior_from_catalog(tmp_path: Path) -> None:
    """A user's method inherits prior and code from the nearest catalog entry."""
    for changes, like in (
        ({}, "lora"),
        ({"use_dora": True}, "dora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"use_rslora": True}, "rslora"),
    ):
        peft.LoraConfig(r=4, **changes).save_pretrained(tmp_path)
        found = user_defined.from_file("mine", tmp_path / "adapter_config.json")
        known = registry.load(like, Path())
        assert (found.learning_rate, found.hook) == (known.learning_rate, known.hook)
        assert known.title in found.learning_rate_why
        assert found.config["r"] == 4
        assert "base_model_name_or_path" not in found.config


def test_config_class_as_contender(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A user's config class is a contender."""
    study_values["methods"]["contenders"] = ["mine"]
    study_values["method"] = {
        "mine": {
            "kind": "peft",
            "peft": "VeraConfig",
            "config": {"r": 16},
            "learning_rates": [1, 2],
        }
    }
    lora, mine = load_methods(parse_spec(study_values), tmp_path)
    assert lora.peft == "LoraConfig"
    assert (mine.name, mine.peft, mine.config) == ("mine", "VeraConfig", {"r": 16})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "has no `peft_type`"),
        ('{"r": 3}', "has no `peft_type`"),
        ('{"peft_type": "LORRA"}', "LORRA"),
        (None, "cannot be read"),
    ],
)
def test_bad_files_are_refused(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as error:
        user_defined.from_file("mine", path)
    assert says in error.value.cause
    assert error.value.try_


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"kind": "peft"}, "either `path` or `peft`"),
        ({"kind": "peft", "path": "a", "peft": "b"}, "either `path` or `peft`"),
        ({"path": "a"}, 'needs kind = "peft"'),
        ({"kind": "peft", "peft": "LorraConfig"}, "LorraConfig"),
    ],
)
def test_bad_tables_are_refused(
    table: dict[str, Any], says: str, study_values: dict[str, Any], tmp_path: Path
) -> None:
    study_values["methods"]["contenders"] = ["mine"]
    study_values["method"] = {"mine": table}
    with pytest.raises(UsageError) as error:
        load_methods(parse_spec(study_values), tmp_path)
    assert says in error.value.cause
