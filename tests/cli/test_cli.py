"""The command line as a user meets it: verbs, tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w
from helpers.command import bakeoff

from bakeoff.core import plugins
from bakeoff.testing.tiny import rows, write_jsonl


@pytest.fixture
def study(study_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(study_values))
    return path


def test_commands_from_plan_to_report(study: Path) -> None:
    """The commands lead from the plan to the report."""
    cwd = study.parent
    planned = json.loads(bakeoff("plan", "study.toml", "--json", cwd=cwd).stdout)
    # two methods, two seeds, two settings that both go on from the rung to step 6
    assert (planned["trials"], planned["steps"], planned["steps_raced"]) == (8, 48, 48)
    assert (planned["looks"], planned["rungs"], planned["keep"]) == ([2], [1], [2])
    assert planned["price"]["most"]["runs"] == 8
    assert 0 < planned["estimate"]["low"] < planned["estimate"]["seconds"]
    assert planned["estimate"]["disk_bytes"] > 0
    text = bakeoff("plan", "study.toml", "--no-time", cwd=cwd).stdout
    assert "2 replicates of each method, analysed once" in text
    assert "at most 8 trials and 48 steps" in text
    assert "would be found in 80 %" in text
    assert "no number of seeds narrows an interval below ±" in text
    assert "cannot show that a method is equivalent within" in text
    assert "minutes" not in text
    assert not (cwd / "runs").exists(), "plan wrote something"

    ran = bakeoff("run", "study.toml", cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    assert "LoRA" in ran.stdout
    assert "control" in ran.stdout
    assert "Replicates, on test 4/4" in ran.stderr

    status = json.loads(bakeoff("status", "--json", cwd=cwd).stdout)
    assert (status["done"], status["planned"]) == (8, 8)
    report = json.loads(bakeoff("report", "tiny", "--json", cwd=cwd).stdout)
    assert report["complete"] is True
    assert report["study"]["n_test_items"] == 24
    assert report["provenance"]["versions"]["peft"]
    schema = json.loads(bakeoff("schema", "--report", cwd=cwd).stdout)
    jsonschema.validate(report, schema)
    assert {m["n_settings"] for m in report["methods"]} == {2}
    assert {m["n_seeds"] for m in report["methods"]} == {2}
    for method in report["methods"]:
        assert method["cost"]["step_milliseconds"] > 0
        assert method["cost"]["adapter_bytes"] > 0
        assert method["cost"]["memory_kind"] == "rss_above_base"


def test_without_a_study_file(tiny_bert: Path, tmp_path: Path) -> None:
    renamed = [{"said": r["text"], "meaning": r["label"]} for r in rows()]
    write_jsonl(tmp_path / "said.jsonl", renamed)
    arguments = (
        "run", "--model", str(tiny_bert), "--data", "said.jsonl", "--steps", "4",
        "--column", "text=said", "--column", "label=meaning", "--methods", "lora,full", "--json",
    )  # fmt: skip
    done = bakeoff(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {m["method"] for m in report["methods"]} == {"lora", "full"}
    assert (tmp_path / "runs" / "said" / "study.toml").is_file()
    again = bakeoff(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["methods"] == report["methods"]


def test_sft_end_to_end(study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    study_values["base"]["model"] = str(tiny_llama)
    study_values["task"] = {"kind": "sft", "metric": "json_match", "max_length": 64}
    study_values["data"]["columns"] = {"prompt": "Command : {text} JSON", "completion": "{json}"}
    study_values["data"]["limit"] = {"test": 6}
    study_values["methods"]["contenders"] = ["head", "prefix_tuning"]
    del study_values["method"]
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study_values))
    done = bakeoff("run", "study.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = {m["method"]: m for m in report["methods"]}
    assert found["head"]["status"] == "incompatible"
    assert "no output layer of its own" in found["head"]["reason"]
    assert found["prefix_tuning"]["status"] == "done"
    assert report["study"]["n_test_items"] == 6
    assert any("6 items" in w for w in report["warnings"])


def test_diverged_setting_is_row(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A diverged setting is a row of the report and the study continues."""
    study_values["method"]["ia3"]["learning_rates"] = [1e-2, 1e30]
    study_values["budget"]["steps"] = 30  # the first rung comes after a few of them
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study_values))
    done = bakeoff("run", "study.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    ia3 = next(m for m in report["methods"] if m["method"] == "ia3")
    assert (ia3["status"], ia3["setting"], ia3["n_trials_diverged"]) == (
        "done", {"learning_rate": 1e-2}, 2,
    )  # fmt: skip
    assert [f["status"] for f in report["failures"]] == ["diverged"] * 2, "in both replicates"
    assert all("at step" in f["reason"] for f in report["failures"])


def test_methods_lists_the_catalog(tmp_path: Path) -> None:
    listed = json.loads(bakeoff("methods", "--json", cwd=tmp_path).stdout)
    assert {"lora", "dora", "ia3", "vera", "oft", "miss", "full", "head"} <= {
        m["name"] for m in listed
    }
    page = bakeoff("methods", "oft", cwd=tmp_path).stdout
    assert "https://arxiv.org/abs/2506.19847" in page
    assert 'peft = "OFTConfig"' in bakeoff("methods", "oft", "--toml", cwd=tmp_path).stdout


def test_init_file_matches_schema(tmp_path: Path) -> None:
    """`bakeoff init` writes a file that the schema describes."""
    import tomllib

    assert bakeoff("init", cwd=tmp_path).returncode == 0
    schema = json.loads(bakeoff("schema", cwd=tmp_path).stdout)
    jsonschema.validate(tomllib.loads((tmp_path / "study.toml").read_text()), schema)
    assert schema["properties"]["budget"]
    assert "weight_decay" in json.dumps(schema)
    assert bakeoff("init", cwd=tmp_path).returncode == 2


def test_doctor_measures_this_machine(tmp_path: Path) -> None:
    found = json.loads(bakeoff("doctor", "--json", cwd=tmp_path).stdout)
    assert found["machine"]["matmul_gflops"]["fp32"] > 0
    assert found["machine"]["precision"] in ("bf16", "fp32")
    assert {f["what"] for f in found["findings"]} >= {"versions", "device", "sqlite", "disk"}


def test_plugins_are_found_by_file_name() -> None:
    assert plugins.list_plugins("tasks") == ("choice", "classify", "sft")
    assert {"accuracy", "exact_match", "json_match", "loss"} < set(
        plugins.list_plugins("metrics.builtin")
    )
    assert set(plugins.list_plugins("study.executors")) == {"inline", "process", "ray"}
