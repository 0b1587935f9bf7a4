"""A study in the format of PEFT's method_comparison, and read back: the same figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bakeoff import api
from bakeoff.cli import app
from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import Forgetting, SplitScores, Status
from bakeoff.integrations.peft_benchmark import exporting
from bakeoff.integrations.peft_benchmark.exporting import write_results
from bakeoff.integrations.peft_benchmark.importing import ImportOptions, import_results
from bakeoff.integrations.peft_benchmark.results import read_file, read_folder
from bakeoff.study.config import parse_spec

THEIRS = Path(__file__).parents[1] / "data" / "hf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A study of two methods and two seeds, run."""
    from bakeoff.testing.tiny import rows, write_jsonl

    home = tmp_path_factory.mktemp("study")
    data = write_jsonl(home / "rows.jsonl", rows())
    values = {
        "name": "tiny",
        "base": {"model": str(tiny_bert)},
        "data": {"train": str(data)},
        "task": {"kind": "classify", "max_length": 32, "head_learning_rate": 0.01},
        "methods": {"control": "lora", "contenders": ["full"]},
        "budget": {"steps": 6, "batch_size": 8, "settings": 1, "seeds": 2, "validations": 2},
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
    }
    api.run(parse_spec(values), home, home / "out")
    return home / "out"


@pytest.fixture(scope="module")
def record(folder: Path) -> StudyRecord:
    return api.read_record(folder)


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf-json")
    assert len(write_results(folder, out)) == 4
    return out


def keys(value: Any, prefix: str = "") -> set[str]:
    found = set()
    for key, item in value.items() if isinstance(value, dict) else ():
        found |= {f"{prefix}{key}"} | keys(item, f"{prefix}{key}.")
    return found


def test_sections_and_fields_match_peft(written: Path) -> None:
    """The sections and fields are those of PEFT's files.

    What their own files have, but for each package's own and the PEFT config's arguments.
    """
    theirs = keys(
        json.loads((THEIRS / "MetaMathQA" / "lora--llama-3.2-3B-rank32.json").read_text())
    )
    task = json.loads((THEIRS / "task" / "default_training_params.json").read_text())
    theirs |= {f"run_info.train_config.{key}" for key in task}
    theirs.add("run_info.peft_worktree_is_dirty")  # newer than the published results
    free = ("peft_config.", "dataset_info.", "optimizer_kwargs.", "generation_kwargs.")
    for path in written.glob("*.json"):
        mine = keys(json.loads(path.read_text()))
        lacking = {k for k in theirs - mine if not any(part in k for part in free)}
        assert not {k for k in lacking if "package_info" not in k and "pytorch_info" not in k}
        added = {k for k in mine - theirs if not any(part in k for part in free)}
        assert {k.split(".")[1] for k in added if "pytorch_info" not in k} == {"bakeoff"}


def test_roundtrip_keeps_numbers(written: Path, record: StudyRecord, tmp_path: Path) -> None:
    """Every number is the same after writing and reading."""
    results = {r.name: r for r in read_folder(written)}
    finals = [(t, r) for t, r in record.trials if r and "test" in r.splits]
    assert len(results) == len(finals) == 4
    control = next(n for n in results if n.startswith("lora/"))
    report = import_results(written, tmp_path / "back", ImportOptions("back", control))
    rows = {m["method"]: m for m in report["methods"]}
    scores = set()
    for trial, result in finals:
        assert result is not None
        name = f"{trial.method.name}/lr_{trial.learning_rate}-seed_{trial.seed}"
        test, row, cost = result.splits["test"], rows[name], record.costs[trial.method.name]
        assert row["status"] == "done"
        assert row["setting"] == {"learning_rate": trial.learning_rate}
        assert row["score"]["estimate"] == pytest.approx(sum(test.scores) / len(test.scores))
        scores.add(row["score"]["estimate"])
        assert row["reported"]["seed"] == trial.seed
        assert row["reported"]["total_time"] == pytest.approx(result.seconds)
        for mine in ("trainable_parameters", "adapter_bytes", "train_seconds"):
            assert row["cost"][mine] == getattr(result, mine), mine
        for mine in ("step_milliseconds", "train_peak_bytes", "memory_kind"):
            assert row["cost"][mine] == getattr(cost, mine), mine
            assert getattr(cost, mine) is not None
        points = [(p["step"], p["train_loss"]) for p in row["curves"][0]["points"]]
        assert points == [(p.step, p.train_loss) for p in result.curve]
        valid = [e["valid loss"] for e in results[name].train.metrics[:-1]]
        assert valid == [p.validation_loss for p in result.curve]
    assert any(0 < score < 1 for score in scores)
    study = report["study"]
    assert (study["metric"], study["n_test_items"]) == (record.metric.name, len(test.scores))
    assert study["base"] == record.base
    assert rows[control]["score"]["low"] is not None


def test_config_is_peft_saved_config(written: Path, folder: Path) -> None:
    """The configuration is the one that PEFT saved."""
    saved = {p.read_text() for p in (folder / "trials").glob("*/adapter/adapter_config.json")}
    configs = {f.name: read_file(f).run.peft_config for f in written.glob("*.json")}
    for name, config in configs.items():
        if name.startswith("full--"):
            assert config is None
        else:
            assert config in [json.loads(text) for text in saved]
            assert config is not None
            assert config["peft_type"] == "LORA"


def changed(record: StudyRecord, **changes: Any) -> StudyRecord:
    """Return the record with its first final trial's result changed."""
    trials, left = [], 1
    for trial, result in record.trials:
        if left and result is not None and "test" in result.splits:
            left, result = 0, dataclasses.replace(result, **changes)
        trials.append((trial, result))
    return dataclasses.replace(record, trials=tuple(trials))


def test_graded_scores_have_no_interval(record: StudyRecord, folder: Path, tmp_path: Path) -> None:
    """Scores other than right or wrong get no interval.

    Not even in the files of the trials whose own scores happen to be 0 and 1.
    """
    half = SplitScores((0.25, 0.5, 1.0), (None,) * 3, None)
    metric = dataclasses.replace(record.metric, name="numeric")
    graded = dataclasses.replace(changed(record, splits={"test": half}), metric=metric)
    found = exporting.result_files(graded, folder)
    exporting.write_files(found, tmp_path / "files")
    last = {n: v["train_info"]["metrics"][-1]["test numeric"] for n, v in found.items()}
    (first,) = (found[n] for n, score in last.items() if score == pytest.approx(1.75 / 3))
    control = first["run_info"]["experiment_name"]
    report = import_results(tmp_path / "files", tmp_path / "back", ImportOptions("back", control))
    row = next(m for m in report["methods"] if m["method"] == control)
    assert (row["score"]["estimate"], row["score"]["low"]) == (pytest.approx(1.75 / 3), None)
    assert {m["verdict"] for m in report["methods"]} == {"control", "none"}
    # right or wrong, a metric of another name is their accuracy
    right = dataclasses.replace(record, metric=metric)
    for value in exporting.result_files(right, folder).values():
        assert "test accuracy" in value["train_info"]["metrics"][-1]
        assert value["meta_info"]["bakeoff"]["metric"]["name"] == "numeric"


def test_forgetting_is_per_token(record: StudyRecord, folder: Path, tmp_path: Path) -> None:
    known = Forgetting((2, 3), (4.0, 6.0), (5.0, 6.5), (0.1, 0.2))
    found = exporting.result_files(changed(record, forgetting=known), folder)
    exporting.write_files(found, tmp_path / "files")
    last = {n: v["train_info"]["metrics"][-1]["forgetting"] for n, v in found.items()}
    (name,) = (found[n]["run_info"]["experiment_name"] for n, x in last.items() if x is not None)
    report = import_results(tmp_path / "files", tmp_path / "back", ImportOptions("back", name))
    row = next(m for m in report["methods"] if m["method"] == name)
    assert row["forgetting"]["estimate"] == pytest.approx(1.5 / 5)


def test_failed_trial_has_reason(record: StudyRecord, folder: Path, tmp_path: Path) -> None:
    """A failed trial is a file with its reason."""
    failed = changed(record, status=Status.OUT_OF_MEMORY, reason="CUDA out of memory", splits={})
    found = exporting.result_files(failed, folder)
    exporting.write_files(found, tmp_path / "files")
    names = [v["run_info"]["experiment_name"] for v in found.values()]
    (bad,) = (v for v in found.values() if v["train_info"]["status"] != "success")
    assert bad["run_info"]["error_msg"] == "CUDA out of memory"
    control = next(n for n in names if n != bad["run_info"]["experiment_name"])
    report = import_results(tmp_path / "files", tmp_path / "back", ImportOptions("back", control))
    row = next(m for m in report["methods"] if m["method"] == bad["run_info"]["experiment_name"])
    assert row["status"] == "out_of_memory"


def test_command_writes_in_study_folder(folder: Path, tmp_path: Path) -> None:
    """The command writes into the study folder."""
    run = CliRunner().invoke
    done = run(app, ["report", str(folder), "--hf-json", "--json"])
    assert done.exit_code == 0, done.output
    names = json.loads(done.stdout)
    assert sorted(p.name for p in (folder / "hf-json").iterdir()) == sorted(names)
    again = run(app, ["report", str(folder), "--hf-json", "--out", str(tmp_path / "x")])
    assert f"{len(names)} files in" in again.stderr
    assert {p.name for p in (tmp_path / "x").iterdir()} == set(names)
    refused = run(app, ["report", str(folder), "--out", str(tmp_path / "y")])
    assert isinstance(refused.exception, UsageError)
    assert refused.exception.code == "out-without-hf-json"


def test_unexportable_study_writes_nothing(
    record: StudyRecord, folder: Path, tmp_path: Path
) -> None:
    """A study without trials and an imported one write no result files."""
    none = dataclasses.replace(record, trials=())
    with pytest.raises(UsageError, match="hf-json-nothing"):
        exporting.result_files(none, folder)
    import_results(THEIRS / "image-gen", tmp_path / "images", ImportOptions("images"))
    with pytest.raises(UsageError, match="hf-json-imported"):
        write_results(tmp_path / "images", tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_files_of_two_studies_make_none(written: Path, tmp_path: Path) -> None:
    for path in written.glob("*.json"):
        value = json.loads(path.read_text())
        (tmp_path / path.name).write_text(json.dumps(value))
    value["meta_info"]["bakeoff"]["n_test_items"] += 1
    value["run_info"]["experiment_name"] = "other"
    (tmp_path / "other.json").write_text(json.dumps(value))
    with pytest.raises(BakeoffError, match="hf-results-mixed") as refused:
        import_results(tmp_path, tmp_path / "out", ImportOptions("x", "other"))
    assert "other.json of bakeoff (classify, accuracy of" in refused.value.cause


@pytest.mark.parametrize("key", ["metric", "binary", "cost"])
def test_incomplete_section_refused(written: Path, tmp_path: Path, key: str) -> None:
    """A file whose own section lacks a key is refused."""
    path = next(iter(sorted(written.glob("*.json"))))
    value = json.loads(path.read_text())
    del value["meta_info"]["bakeoff"][key]
    (tmp_path / "one.json").write_text(json.dumps(value))
    with pytest.raises(BakeoffError, match=f"meta_info.bakeoff lacks {key}"):
        import_results(
            tmp_path, tmp_path / "out", ImportOptions("x", value["run_info"]["experiment_name"])
        )
