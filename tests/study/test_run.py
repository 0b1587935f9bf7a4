"""A whole study on a tiny model, and what lies in its folder afterwards, used without bakeoff."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bakeoff import api
from bakeoff.data.rows import read_rows
from bakeoff.report import render
from bakeoff.report.texts import saved_weights_text
from bakeoff.study import verify_weights
from bakeoff.study.config import parse_spec
from bakeoff.study.storage.database import Writer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def as_run(values: dict[str, Any]) -> dict[str, Any]:
    values["methods"]["contenders"] = ["ia3", "full", "head"]
    values["budget"]["steps"] = 20
    return values


@pytest.fixture
def study(study_values: dict[str, Any], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Run once for the module: a second call only reads."""
    if not (folder / "study.db").exists():
        as_run(study_values)
        api.run(parse_spec(study_values), folder, folder)
    return folder, json.loads((folder / "report.json").read_text())


def test_report_is_complete(study: tuple[Path, dict[str, Any]]) -> None:
    """The report is complete."""
    folder, report = study
    assert report["complete"] is True
    assert [m["method"] for m in report["methods"]][0] == "lora"
    assert {m["method"] for m in report["methods"]} == {"lora", "ia3", "full", "head"}
    assert {m["status"] for m in report["methods"]} == {"done"}
    for method in report["methods"]:
        assert {s["seed"] for s in method["settings"]} == {1, 2}
        for seed in (1, 2):
            replicate = [s for s in method["settings"] if s["seed"] == seed]
            assert sorted(s["status"] for s in replicate) == ["done", "stopped"]
            (chosen,) = (s for s in replicate if s["chosen"])
            assert chosen["validation_loss"] == min(s["validation_loss"] for s in replicate)
    assert "Content-Security-Policy" in (folder / "report.html").read_text()
    # 4 probes, 16 trials at each rung that was tried and at the end, 8 on test, 4 reloads
    events = (folder / "log.jsonl").read_text().count('"event": "advance"')
    assert events in {4 + 16 * stages + 8 + 4 for stages in (2, 3, 4, 5)}


def test_item_texts_unless_private(study: tuple[Path, dict[str, Any]]) -> None:
    """Item texts are shown unless the data is private."""
    folder, report = study
    rows = read_rows(folder / "data" / "test.jsonl")
    items = report["items"]
    assert items["n_items"] == len(rows)
    assert {m["method"] for m in items["methods"]} == {"ia3", "full", "head"}
    assert items["asked"]
    for asked in items["asked"]:
        row = rows[asked["item"] - 1]
        assert (asked["prompt"], asked["reference"]) == (row["text"], row["label"])
    private = api.report(folder, examples=False)["items"]
    assert private["asked"] == []
    written = (folder / "report.json").read_text() + (folder / "report.html").read_text()
    assert not any(row["text"] in written for row in rows)
    counts = ("method", "better", "same", "worse", "outcomes")
    assert [{k: m[k] for k in counts} for m in private["methods"]] == [
        {k: m[k] for k in counts} for m in items["methods"]
    ]
    assert api.report(folder)["items"] == items  # nothing of it is remembered


def test_test_set_scored_once_a_replicate(study: tuple[Path, dict[str, Any]]) -> None:
    """One trial of each replicate is scored on test, and only its weights are saved."""
    folder, _ = study
    tested = []
    for trial, result in api.read_trials(folder):
        assert result is not None
        scored = "test" in result.splits
        tested += [(trial.method.name, trial.seed)] if scored else []
        if trial.method.hook is None:
            assert (folder / "trials" / trial.id / "adapter").exists() == scored
    assert sorted(tested) == sorted((m, s) for m in ("lora", "ia3", "full", "head") for s in (1, 2))


@pytest.mark.parametrize("method", ["lora", "ia3", "full", "head"])
def test_saved_weights_predict_without_bakeoff(
    study: tuple[Path, dict[str, Any]], tiny_bert: Path, method: str
) -> None:
    """Saved weights predict the same without bakeoff."""
    folder, report = study
    labels = sorted({row["label"] for row in read_rows(folder / "data" / "train.jsonl")})
    method_row = next(m for m in report["methods"] if m["method"] == method)
    stored = {t.id: r for t, r in api.read_trials(folder)}
    for seed in method_row["seeds"]:
        place = folder / "trials" / seed["trial_id"]
        model = load(method, place, tiny_bert, len(labels))
        tokenizer: Any = AutoTokenizer.from_pretrained(tiny_bert)
        texts = [row["text"] for row in read_rows(folder / "data" / "test.jsonl")]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            best = model.eval()(**inputs).logits.argmax(-1).tolist()
        result = stored[seed["trial_id"]]
        assert result is not None
        assert [labels[i] for i in best] == list(result.splits["test"].predictions)


def load(method: str, place: Path, base: Path, n_labels: int) -> Any:
    """Load a finished trial with transformers and peft alone."""
    if method == "full":
        return AutoModelForSequenceClassification.from_pretrained(place / "model")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=n_labels)
    if method == "head":
        model.load_state_dict(load_file(place / "tensors" / "model.safetensors"), strict=False)
        return model
    return peft.PeftModel.from_pretrained(model, place / "adapter")


def test_adapter_names_base(study: tuple[Path, dict[str, Any]], tiny_bert: Path) -> None:
    """A saved adapter names its base."""
    folder, report = study
    trial_id = report["methods"][0]["seeds"][0]["trial_id"]
    config = json.loads((folder / "trials" / trial_id / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_bert)


def test_finished_trial_lists_hashes(
    study: tuple[Path, dict[str, Any]],
) -> None:
    """A finished trial lists the hashes of its files."""
    import hashlib

    folder, _ = study
    for place in (folder / "trials").iterdir():
        hashes = json.loads((place / "COMPLETE.json").read_text())
        files = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
        assert files == {*hashes, "COMPLETE.json"}
        for name, value in hashes.items():
            assert hashlib.sha256((place / name).read_bytes()).hexdigest() == value


def test_reloaded_weights_give_trained_loss(
    study: tuple[Path, dict[str, Any]],
) -> None:
    """Saved weights are reloaded and give the trained loss."""
    folder, report = study
    assert not any("saved" in w for w in report["warnings"])
    for method in report["methods"]:
        found = method["artifact"]
        assert found["same"] is True, found
        assert found["error"] is None
        assert found["loss"] == pytest.approx(found["reloaded_loss"], rel=1e-5)
        assert any((folder / found["path"]).glob("*.safetensors"))
        losses = {s["seed"]: s["validation_loss"] for s in method["seeds"]}
        assert found["loss"] == min(losses.values()) == losses[found["seed"]]
    report["recommendation"] |= {"method": "lora"}  # the study is too short to recommend one
    words = saved_weights_text(report, f"{folder}/")
    assert words is not None
    assert "trials/" in words
    assert words.replace(f"{folder}/", "") in render(report).replace("&#39;", "'")


def test_mismatched_weights_warn(
    study: tuple[Path, dict[str, Any]], study_values: dict[str, Any], tmp_path: Path
) -> None:
    """Weights other than those that were trained give a warning."""
    folder = shutil.copytree(study[0], tmp_path / "copy")
    spec = parse_spec(as_run(study_values))
    lora, ia3 = (m["artifact"] for m in study[1]["methods"] if m["method"] in ("lora", "ia3"))
    changed = folder / lora["path"] / "adapter_model.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(changed).items()}, changed)
    shutil.rmtree(folder / ia3["path"])
    with Writer(folder / "study.db") as store:
        store.set(verify_weights.KEY, {})
    report = api.run(spec, folder, folder)
    found = {m["method"]: m["artifact"] for m in report["methods"]}
    assert found["lora"]["same"] is False
    assert found["lora"]["error"] is None
    assert found["ia3"]["same"] is None
    assert "ia3" not in found["ia3"]["error"]
    assert found["full"]["same"] is True
    told = [w for w in report["warnings"] if "the saved weights" in w]
    assert [w.split(":")[0] for w in told] == ["LoRA", "IA3"]
