"""`bakeoff export`: weights as a server wants them, scored again as they were written."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from bakeoff import api
from bakeoff.cli import app
from bakeoff.core.errors import BakeoffError, PreflightError, UsageError
from bakeoff.core.trial import Segment
from bakeoff.integrations.export_weights import export_weights
from bakeoff.methods.hook import SaveContext
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import rows, save_llama, write_jsonl
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
    """The command exports the recommended method; where there is none, the one that is named."""
    wanted = json.loads((study / "report.json").read_text())["recommendation"]["method"]
    target, named = tmp_path / "made", []
    if wanted is None:
        refused = CliRunner().invoke(app, ["export", str(study)])
        assert isinstance(refused.exception, UsageError)
        assert refused.exception.code == "nothing-to-export"
        wanted = refused.exception.try_.partition("one of ")[2].split(",")[0]
        named = ["--method", wanted]
    told = CliRunner().invoke(app, ["export", str(study), *named, "--out", str(target), "--json"])
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)
    assert (made["method"], made["folder"]) == (wanted, str(target))
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ")
    assert "0 of which have a different score" in card
    assert "More Information Needed" not in card
    again = CliRunner().invoke(app, ["export", str(study), *named, "--out", str(target)])
    assert isinstance(again.exception, UsageError)
    assert again.exception.code == "folder-taken"
    said = CliRunner().invoke(app, ["export", str(study), *named, "--as", "merged"])
    assert said.exit_code == 0, said.output
    assert "0 of" in said.output
    default = f"{wanted if named else 'recommended'}-merged"
    assert (study / "export" / default / "model.safetensors").is_file()


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


@pytest.fixture(scope="module")
def sft_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on a base in 4 bits, of LoRA with a trained output layer and of others."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("sft")
    plain = save_llama(folder / "plain")
    four_bits = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, quantization_config=four_bits)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder / "base")
    write_jsonl(folder / "rows.jsonl", rows())
    values = {
        "name": "sft",
        "base": {"model": str(folder / "base")},
        "data": {
            "train": str(folder / "rows.jsonl"),
            "columns": {"prompt": "{text}\n", "completion": "{label}"},
        },
        "task": {"kind": "sft", "max_length": 32, "max_new_tokens": 4},
        "methods": {"control": "lora", "contenders": ["mine", "ia3"]},
        "method": {
            "mine": {
                "kind": "peft", "peft": "LoraConfig", "learning_rates": [1e-3],
                "config": {
                    "r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"],
                },
            }
        },
        "budget": {"steps": 3, "batch_size": 8, "settings": 1, "seeds": 1, "race": "off"},
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
        "forgetting": {"text": "off"},
    }  # fmt: skip
    api.run(parse_spec(values), folder, folder / "run")
    return folder / "run"


def test_no_command_for_refused_adapter(sft_study: Path, tmp_path: Path) -> None:
    """vLLM takes no `modules_to_save`: why is said, and the form that it serves."""
    told = CliRunner().invoke(
        app, ["export", str(sft_study), "--method", "mine", "--out", str(tmp_path / "made")]
    )
    assert told.exit_code == 0, told.output
    assert "vllm serve" not in told.output
    assert "it is saved with modules_to_save" in told.output
    (hint,) = re.findall(r"`bakeoff (export .*?)`", told.output)
    followed = CliRunner().invoke(app, [*shlex.split(hint), "--out", str(tmp_path / "whole")])
    assert followed.exit_code == 0, followed.output
    assert f"Serve it: vllm serve {tmp_path / 'whole'}" in followed.output


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_into_quantised_files(sft_study: Path, tmp_path: Path, method: str) -> None:
    """A base whose files are in 4 bits is dequantised first: the loss stays, weights are plain."""
    made = export_weights(sft_study, tmp_path / "made", method, "merged")
    assert made.same
    assert made.loss == pytest.approx(made.trained_loss, rel=0.02)
    assert made.note is not None
    assert "quantised (bitsandbytes)" in made.note
    assert made.serve == f"vllm serve {tmp_path / 'made'}"
    config = json.loads((tmp_path / "made" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    assert all(t.is_floating_point() for t in tensors.values())
    assert not any("absmax" in name for name in tensors)


def test_plain_lora_served(sft_study: Path, tmp_path: Path) -> None:
    made = export_weights(sft_study, tmp_path / "made", "lora")
    assert made.serve is not None
    words = shlex.split(made.serve)
    assert words[:2] == ["vllm", "serve"]
    assert Path(words[2]) == sft_study.with_name("base")
    served = ["--lora-modules", f"tuned={tmp_path / 'made'}"]
    assert words[3:] == ["--enable-lora", "--max-lora-rank", "32", *served]
    assert made.not_served is None


class Frozen:
    """A base whose quantiser cannot be undone, such as GPTQ."""

    class Config:
        class quantization_config:  # noqa: N801  # transformers' name
            quant_method = "gptq"

    config = Config()

    def dequantize(self) -> None:
        raise NotImplementedError


def test_base_that_cannot_be_dequantised() -> None:
    """A clear refusal with the quantiser's name, never a bare NotImplementedError."""
    reference = SimpleNamespace(base=Frozen)
    with pytest.raises(PreflightError) as refused:
        convert._plain_base(reference)  # type: ignore[arg-type]
    assert refused.value.code == "cannot-merge"
    assert "(gptq)" in refused.value.cause
    assert "without a message, in dequantize (test_export_weights.py" in refused.value.cause
    assert "`--as adapter`" in refused.value.try_


@pytest.mark.parametrize(
    ("method", "form"), [("prompt_tuning", "merged"), ("prompt_tuning", "lora"), ("head", "lora")]
)
def test_hint_of_refused_form_works(study: Path, tmp_path: Path, method: str, form: str) -> None:
    """Each form that the hint names is written when it is asked for."""
    with pytest.raises(BakeoffError) as refused:
        export_weights(study, tmp_path / "no", method, form)
    forms = re.findall(r"--as (\w+)", refused.value.try_)
    assert forms
    for other in forms:
        export_weights(study, tmp_path / other, method, other)


def test_new_folder_as_the_hint_says(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        export_weights(study, tmp_path, "lora")
    assert refused.value.code == "folder-taken"
    assert "--out" in refused.value.try_
    assert export_weights(study, tmp_path / "new", "lora").same
