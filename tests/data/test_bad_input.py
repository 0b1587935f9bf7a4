"""Bad input is refused before any training, with the offending thing named and a way out."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from helpers.command import bakeoff

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import rows, write_jsonl


def refused(values: dict[str, Any], folder: Path) -> BakeoffError:
    with pytest.raises(BakeoffError) as error:
        api.run(parse_spec(values), folder, folder / "out")
    trained = list((folder / "out" / "trials").glob("*")) if (folder / "out").is_dir() else []
    assert trained == [], "something was trained before the refusal"
    assert error.value.try_
    return error.value


def with_rows(values: dict[str, Any], folder: Path, split: str, changed: list[Any]) -> None:
    values["data"][split] = str(write_jsonl(folder / f"{split}.jsonl", changed))


def test_unknown_method(study_values: dict[str, Any], tmp_path: Path) -> None:
    study_values["methods"]["contenders"] = ["dorra"]
    del study_values["method"]
    error = refused(study_values, tmp_path)
    assert (error.code, error.exit_code) == ("unknown-method", 2)
    assert "did you mean 'dora'?" in error.try_


def test_unknown_task_and_metric(study_values: dict[str, Any], tmp_path: Path) -> None:
    wrong = copy.deepcopy(study_values)
    wrong["task"]["kind"] = "clasify"
    assert "did you mean 'classify'?" in refused(wrong, tmp_path).try_
    study_values["task"]["metric"] = "exact_match"
    assert refused(study_values, tmp_path).code == "metric-not-for-task"


def test_missing_target_modules_list_names(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Missing target modules are reported with the names that exist."""
    study_values["method"]["lora"] = {"config": {"target_modules": ["q_proj", "query"]}}
    error = refused(study_values, tmp_path)
    assert error.code == "target-modules-not-found"
    assert "['q_proj']" in error.cause
    assert "dense, key, query, value" in error.try_


def test_unknown_method_argument(study_values: dict[str, Any], tmp_path: Path) -> None:
    study_values["method"]["lora"] = {"config": {"lora_alfa": 3}}
    error = refused(study_values, tmp_path)
    assert error.code == "unknown-config-key"
    assert "did you mean 'lora_alpha'?" in error.try_


def test_empty_split(study_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("\n")
    study_values["data"]["test"] = str(tmp_path / "test.jsonl")
    error = refused(study_values, tmp_path)
    assert error.code == "empty-split"
    assert "test.jsonl" in error.cause


def test_too_few_groups_for_splits(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Too few groups for three splits are refused."""
    study_values["data"]["group"] = "label"
    error = refused(study_values, tmp_path)
    assert error.code in ("empty-split", "label-not-in-train")


def test_missing_column(study_values: dict[str, Any], tmp_path: Path) -> None:
    study_values["data"]["columns"] = {"label": "labl"}
    error = refused(study_values, tmp_path)
    assert error.code == "column-missing"
    assert "did you mean 'label'?" in error.try_
    study_values["data"]["columns"] = {"labels": "label"}
    assert refused(study_values, tmp_path).code == "unknown-field"


def test_label_only_in_test(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A label that occurs in the test split only is refused."""
    with_rows(study_values, tmp_path, "test", [*rows(), {"text": "sing", "label": "choir"}])
    error = refused(study_values, tmp_path)
    assert error.code == "label-not-in-train"
    assert "('choir') in 1 of 97 rows of test: line 97 of test.jsonl." in error.cause


def test_not_utf8(study_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "caf\xe9", "label": "a"}\n')
    error = refused(study_values, tmp_path)
    assert error.code == "data-not-utf8"
    assert "line 1" in error.cause


def test_completion_exceeds_limit(
    study_values: dict[str, Any], tmp_path: Path, tiny_llama: Path
) -> None:
    """A completion longer than the limit is refused."""
    study_values["base"]["model"] = str(tiny_llama)
    study_values["task"] = {"kind": "sft", "max_length": 8}
    study_values["data"]["columns"] = {"prompt": "text", "completion": "json"}
    del study_values["method"]
    error = refused(study_values, tmp_path)
    assert error.code == "completion-too-long"
    assert "58 of 58 rows of train: lines 1, 2, 4, 5, 8 and 53 more" in error.cause
    assert "of test: lines" in error.cause


def test_row_exceeds_base_positions(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A row longer than the base's positions is refused."""
    long = {"text": "turn on the lamp " * 20, "label": "lights"}
    with_rows(study_values, tmp_path, "test", [*rows(), long])
    study_values["task"]["max_length"] = 256
    error = refused(study_values, tmp_path)
    assert error.code == "longer-than-positions"
    assert "(80 of 64) in 1 of 97 rows of test: line 97 of test.jsonl." in error.cause


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "model-not-found"),
        ({"config.json": b"{}"}, "model-without-weights"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "pickled-weights"),
    ],
)
def test_unusable_model_folders(
    study_values: dict[str, Any], tmp_path: Path, files: dict[str, bytes], code: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, content in files.items():
        (model / name).write_bytes(content)
    study_values["base"]["model"] = str(model)
    assert refused(study_values, tmp_path).code == code


def test_pickle_never_loaded(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A pickle is never loaded.

    Weights that would run code when unpickled: refused, and the code has not run.
    """
    model, proof = tmp_path / "model", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(proof),)

    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save(Evil(), model / "pytorch_model.bin")
    study_values["base"]["model"] = str(model)
    assert refused(study_values, tmp_path).code == "pickled-weights"
    assert not proof.exists()


def test_missing_model_folder(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A model folder that does not exist is refused."""
    study_values["base"]["model"] = "./no/such/model"
    assert refused(study_values, tmp_path).code == "model-not-found"


def test_broken_model_refused(
    study_values: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    """A broken model is refused."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_bert.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    study_values["base"]["model"] = str(model)
    assert refused(study_values, tmp_path).code == "base-not-loadable"


def test_missing_device(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A device that does not exist is refused."""
    study_values["engine"]["device"] = "cuda:7"
    assert refused(study_values, tmp_path).code == "device-not-found"


def test_folder_without_write_permission(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A folder without write permission is refused."""
    blocked = tmp_path / "file"
    blocked.write_text("a file stands where the folder would be")
    with pytest.raises(BakeoffError) as error:
        api.run(parse_spec(study_values), tmp_path, blocked / "out")
    assert (error.value.code, error.value.exit_code) == ("folder-not-writable", 6)
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(BakeoffError, match="folder-not-writable"):
            api.run(parse_spec(study_values), tmp_path, closed / "out")


def test_small_test_set_warns(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A test set below 30 items gives a warning."""
    with_rows(study_values, tmp_path, "test", rows()[::8])
    overview = api.overview(parse_spec(study_values), tmp_path)
    assert any("The test set has 12 items" in w for w in overview["warnings"])
    assert any(w.endswith("[test-in-train]") for w in overview["warnings"])


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["run", "none.toml"], 2, "[study-not-found]"),
        (["run"], 2, "[no-study-given]"),
        (["run", "typo.toml"], 2, "unknown key 'budgett'; did you mean 'budget'?"),
        (["run", "--model", "m", "--data", "odd.jsonl"], 2, "(a, b)"),
        (["run", "--model", "m", "--data", "odd.jsonl", "--column", "x"], 2, "column-malformed"),
        (["methods", "lroa"], 2, "did you mean 'lora'?"),
        (["report", "nowhere"], 2, "[no-study]"),
        (["status"], 2, "[no-study]"),
        (["assets", "minilm"], 2, "all-minilm-l6-v2"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_command_line_names_error(
    tmp_path: Path, arguments: list[str], exit_code: int, says: str
) -> None:
    """The command line prints the error."""
    (tmp_path / "odd.jsonl").write_text('{"a": 1, "b": 2}\n')
    typo = {"name": "x", "base": {"model": "m"}, "data": {"train": "t"}, "budgett": {},
            "task": {"kind": "classify"}, "methods": {"contenders": ["ia3"]}}  # fmt: skip
    (tmp_path / "typo.toml").write_text(tomli_w.dumps(typo))
    done = bakeoff(*arguments, cwd=tmp_path)
    said = " ".join(done.stderr.split())
    assert done.returncode == exit_code, done.stderr
    assert says in said
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
