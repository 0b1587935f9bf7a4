"""`bakeoff export`: weights as a server wants them, scored again as they were written."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from bakeoff import api
from bakeoff.cli import app
from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.core.trial import Segment
from bakeoff.integrations.export_weights import export_weights
from bakeoff.methods.hook import SaveContext
from bakeoff.study.config import parse_spec
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training import convert
from bakeoff.training.evaluate import item_losses


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, make_study: Callable[[Path], dict[str, Any]]
) -> Path:
    folder = tmp_path_factory.mktemp("study")
    values = make_study(folder)
    values["methods"]["contenders"] = ["dora", "ia3", "full", "head", "prompt_tuning"]
    values["budget"]["steps"] = 20
    api.run(parse_spec(values), folder, folder)
    return folder


def plain(folder: Path, base: str, kind: str, labels: int) -> Any:
    if kind == "model":
        return AutoModelForSequenceClassification.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    return peft.PeftModel.from_pretrained(model, folder)


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]], names: Any) -> float:
    right = 0
    for row in rows:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits
        right += names[int(logits.argmax())] == row["label"]
    return right / len(rows)


@pytest.mark.parametrize(
    ("method", "form", "kind"),
    [
        ("lora", "adapter", "adapter"),
        ("lora", "merged", "model"),
        ("dora", "merged", "model"),
        ("ia3", "merged", "model"),
        ("lora", "lora", "adapter"),
        ("full", "merged", "model"),
        ("head", "merged", "model"),
        ("full", "adapter", "model"),
    ],
)
def test_exported_weights_score_as_trained(
    study: Path, tmp_path: Path, method: str, form: str, kind: str
) -> None:
    """Exported weights score as they were trained."""
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.suffix != ".db-shm"}
    made = export_weights(study, tmp_path / "made", method, form, rank=8)
    assert (made.kind, made.form, made.method, made.same) == (kind, form, method, True)
    assert made.loss == pytest.approx(made.trained_loss, rel=1e-3)
    assert (made.score, made.differing) == (made.trained_score, 0)
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.suffix != ".db-shm"} == before
    assert json.loads((tmp_path / "made" / "bakeoff.json").read_text())["trial_id"] == made.trial_id
    # a stranger's eyes: transformers and PEFT alone
    spec, values = api.read_values(study)["spec"], _rows(study, "test")
    base, labels = spec["base"]["model"], sorted({r["label"] for r in _rows(study, "train")})
    model = plain(tmp_path / "made", base, kind, len(labels)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made" if kind == "model" else base)
    assert accuracy(model, tokenizer, values, labels) == pytest.approx(made.score)


@pytest.mark.parametrize(
    ("method", "form"), [("lora", "adapter"), ("head", "adapter"), ("dora", "merged")]
)
def test_model_card_code_loads(
    study: Path, tmp_path: Path, method: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code on the model card loads the weights."""
    made = export_weights(study, tmp_path / "made", method, form)
    card = (tmp_path / "made" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path / "made")
    held: dict[str, Any] = {}
    exec(code, held)
    tokenizer = AutoTokenizer.from_pretrained(api.read_values(study)["spec"]["base"]["model"])
    model, rows = held["model"].eval(), _rows(study, "test")
    found = accuracy(model, tokenizer, rows, model.config.id2label)
    assert found == pytest.approx(made.score)


def _rows(study: Path, split: str) -> list[dict[str, Any]]:
    text = (study / "data" / f"{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("method", "form", "code"),
    [
        ("prompt_tuning", "merged", "cannot-merge"),
        ("head", "lora", "cannot-convert"),
        ("prompt_tuning", "lora", "cannot-convert"),
        ("lora", "gguf", "unknown-form"),
        ("lor", "adapter", "unknown-method"),
        ("dora", "lora", "export-differs"),
    ],
)
def test_refused_export_leaves_nothing(
    study: Path, tmp_path: Path, method: str, form: str, code: str
) -> None:
    """An export that is refused leaves nothing behind."""
    with pytest.raises(BakeoffError) as refused:
        export_weights(study, tmp_path / "made", method, form, rank=1)
    assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_command_exports_recommended_method(study: Path, tmp_path: Path) -> None:
    """The command exports the recommended method."""
    wanted = json.loads((study / "report.json").read_text())["recommendation"]["method"]
    target = tmp_path / "made"
    told = CliRunner().invoke(app, ["export", str(study), "--out", str(target), "--json"])
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)
    assert (made["method"], made["folder"]) == (wanted, str(target))
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ")
    assert "0 of which have a different score" in card
    assert "More Information Needed" not in card
    again = CliRunner().invoke(app, ["export", str(study), "--out", str(target)])
    assert isinstance(again.exception, UsageError)
    assert again.exception.code == "folder-taken"
    said = CliRunner().invoke(app, ["export", str(study), "--as", "merged"])
    assert said.exit_code == 0, said.output
    assert "0 of" in said.output
    assert (study / "export" / "recommended-merged" / "model.safetensors").is_file()


def test_changed_weights_need_force(study: Path, tmp_path: Path) -> None:
    """Weights that were changed are exported only when forced."""
    folder = shutil.copytree(study, tmp_path / "copy")
    report = json.loads((folder / "report.json").read_text())
    (lora,) = (m["artifact"] for m in report["methods"] if m["method"] == "lora")
    file = folder / lora["path"] / "adapter_model.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)
    with pytest.raises(BakeoffError) as refused:
        export_weights(folder, tmp_path / "made", "lora")
    assert refused.value.code == "export-differs"
    assert not (tmp_path / "made").exists()
    assert export_weights(folder, tmp_path / "made", "lora", force=True).same is False


def test_other_base_refused(study: Path, tmp_path: Path) -> None:
    """A base other than the trained one is refused."""
    folder = shutil.copytree(study, tmp_path / "copy")
    spec = api.read_values(study)["spec"]
    base = Path(spec["base"]["model"])
    file = base / "model.safetensors"
    kept = file.read_bytes()
    try:
        tensors = load_file(file)
        save_file({k: v + 1 for k, v in tensors.items()}, file, metadata={"format": "pt"})
        with pytest.raises(BakeoffError) as refused:
            export_weights(folder, tmp_path / "made", "lora")
    finally:
        file.write_bytes(kept)
    assert refused.value.code == "base-differs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_weights_exported_on_cpu(tiny_bert: Path, tmp_path: Path) -> None:
    """Weights trained on a GPU are exported without one."""
    own = make_trial("lora", "classify")
    at = build_tiny_setup(own, tiny_bert, tmp_path)
    trial = dataclasses.replace(
        own, conditions=dataclasses.replace(own.conditions, device="cuda:0")
    )
    at.lanes.run_single(0)
    folder = tmp_path / "trials" / trial.id / "adapter"
    at.hook.save(at.model, folder, SaveContext("base", 0, None))
    shutil.copy(tmp_path / "data" / "validation.jsonl", tmp_path / "data" / "test.jsonl")
    expected = item_losses(at, at.examples("validation")).mean()
    segment = Segment((trial,), 0, 1, str(tmp_path), str(tiny_bert)).to_json()
    value = {"segment": segment, "form": "merged", "rank": 8, "target": str(tmp_path / "made")}
    found = convert.run(value)
    assert found["error"] is None
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["note"] == "Scored on cpu: the study trained on cuda:0, which is not here."
