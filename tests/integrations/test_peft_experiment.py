"""An experiment folder of PEFT's method_comparison as a contender: what is taken, what refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from bakeoff.cli import app
from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.integrations.peft_benchmark import experiment as experiments
from bakeoff.study.config import StudySpec, parse_spec
from bakeoff.testing.tiny import rows, write_jsonl

TASK = Path(__file__).parents[1] / "data" / "hf" / "task"
LORA, IA3 = "lora/llama-3.2-3B-rank32", "ia3/llama-3.2-3B-all-attn-5k-lr0.005"
FULL, LORA_FA = "full-finetuning/llama-3.2-3B-lr_0.00001", "lora/llama-3.2-3B-rank32-lorafa"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TASK, tmp_path / "task"))


def read(task: Path, name: str = LORA, **params: Any) -> experiments.Experiment:
    """Read an experiment whose training_params.json says ``params`` beside what it says."""
    folder = task / "experiments" / name
    file = folder / "training_params.json"
    own = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(own | params))
    return experiments.read_experiment(folder, None)


def study(**tables: Any) -> StudySpec:
    value = {
        "name": "mine",
        "base": {"model": "m"},
        "data": {"train": "t.jsonl"},
        "task": {"kind": "sft"},
        "methods": {"control": "lora", "contenders": ["ia3"]},
    }
    return parse_spec(value | tables)


def test_peft_lora_with_peft_defaults(task: Path) -> None:
    """PEFT's own LoRA experiment runs with PEFT's defaults."""
    folder = task / "experiments" / LORA
    given = experiments.read_experiment(folder, None)
    assert (given.name, given.learning_rate) == ("lora--llama-3.2-3B-rank32", 1e-4)
    assert experiments.study_tables(given) == {
        "seed": 0,
        "base": {"model": "meta-llama/Llama-3.2-3B"},
        "task": {"max_length": 768, "max_new_tokens": 300},
        "budget": {
            "steps": 5000, "batch_size": 4, "warmup": 0.1, "decay": 0.9, "weight_decay": 0.1,
            "clip": 1.0, "validations": 20,
        },
        "engine": {"precision": "bf16", "evaluation_batch_size": 50},
    }  # fmt: skip
    assert experiments.data_columns(given) == {
        "prompt": "Question: {query} Think step by step.\nAnswer:",
        "completion": "{response}",
    }
    added = experiments.add_contender(study(), given)
    assert added.methods.contenders == ("ia3", given.name)
    own = added.method[given.name]
    assert (own.kind, own.peft) == ("peft", "LoraConfig")
    assert (own.config["r"], own.config["lora_alpha"]) == (32, 64)
    assert "target_modules" not in own.config, "null is PEFT's own choice for the model"
    assert not own.config.keys() & {"peft_type", "task_type", "inference_mode"}
    # its own rate, and as many others around it as every method has settings
    assert own.learning_rates == (1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3)
    one = experiments.add_contender(study(budget={"settings": 1}), given)
    assert one.method[given.name].learning_rates == (1e-4,)
    notes = " ".join(experiments.experiment_notes(given))
    assert "cosine" in notes
    assert "only the completion counts" in notes
    assert len(experiments.experiment_notes(given)) == 2


def test_parameters_taken_or_noted(task: Path) -> None:
    """Every parameter is used or named in a note.

    Each key of theirs changes the conditions or is named in a note.
    """
    changes: dict[str, Any] = {
        "model_id": "other", "dtype": "int4", "max_seq_length": 64, "batch_size": 2,
        "batch_size_eval": 7, "max_steps": 40, "eval_steps": 10, "compile": True, "use_gc": True,
        "query_template": "{query}?", "seed": 5, "grad_norm_clip": 0, "lr_scheduler": None,
        "optimizer_kwargs": {"lr": 2e-3}, "use_amp": True, "autocast_adapter_dtype": False,
        "generation_kwargs": {"max_new_tokens": 9, "temperature": 0.5},
        "attn_implementation": "sdpa", "init_kv_cache_prefix": "You are",
    }  # fmt: skip
    untouched = set(experiments.Params.model_fields) - changes.keys()
    assert untouched == {"optimizer_type"}
    given = read(task, **changes)
    assert experiments.study_tables(given) == {
        "seed": 5,
        "base": {"model": "other", "quantize": "nf4"},
        "task": {"max_length": 64, "max_new_tokens": 9},
        "budget": {
            "steps": 40, "batch_size": 2, "warmup": 0.0, "decay": 0.0, "weight_decay": 0.01,
            "clip": experiments.NO_CLIP, "validations": 4,
        },
        "engine": {"evaluation_batch_size": 7, "compile": "on", "checkpointing": "on"},
    }  # fmt: skip
    assert experiments.data_columns(given)["prompt"] == "{query}?"
    assert given.learning_rate == 2e-3
    said = " ".join(experiments.experiment_notes(given))
    for word in (
        "use_amp", "attn_implementation", "autocast_adapter_dtype", "temperature",
        "init_kv_cache_prefix", "nf4", "AdamW's default, 0.01",
    ):  # fmt: skip
        assert word in said, word
    parse_spec(study().model_dump(exclude_none=True) | experiments.study_tables(given) | {
        "task": {"kind": "sft", **experiments.study_tables(given)["task"]}
    })  # fmt: skip


def test_no_adapter_means_full_finetuning(task: Path) -> None:
    """An experiment without an adapter is full fine-tuning."""
    given = experiments.read_experiment(task / "experiments" / FULL, None)
    assert (given.name, given.adapter, given.learning_rate) == ("full", None, 1e-5)
    assert given.weight_decay == 0.01, "overriding the rate drops the default weight decay"
    added = experiments.add_contender(
        study(methods={"control": "lora", "contenders": ["full"]}), given
    )
    assert added.methods.contenders == ("full",)
    rates = added.method["full"].learning_rates
    assert rates is not None
    assert rates[2] == 1e-5
    with pytest.raises(UsageError, match="hf-experiment-there"):
        experiments.add_contender(added, given)


def test_differences_reported_and_hours_kept(task: Path) -> None:
    """Differences from the study are reported, and its time budget is kept."""
    given = experiments.read_experiment(task / "experiments" / LORA, None)
    spec = study(budget={"hours": 1.0, "batch_size": 4}, engine={"precision": "bf16"})
    added = experiments.add_contender(spec, given)
    assert added.budget.hours == 1.0
    told = experiments.differing_settings(added, given)
    assert any(line.startswith("base.model is m here and meta-llama/") for line in told)
    assert any(line.startswith("task.max_new_tokens is not set here and 300") for line in told)
    assert not any("batch_size is 4" in line or "precision" in line for line in told)


@pytest.mark.parametrize(
    ("params", "code", "says"),
    [
        ({"max_step": 3}, "hf-params-invalid", "`max_step`.*rename it to 'max_steps'"),
        ({"weird": 3}, "hf-params-invalid", "`weird`.*remove `weird`"),
        ({"batch_size": "4"}, "hf-params-invalid", "`batch_size`: Input should be a valid integer"),
        ({"batch_size": 0}, "hf-params-invalid", "`batch_size`"),
        ({"dtype": "int2"}, "hf-params-invalid", "`dtype`"),
        ({"lr_scheduler": "linear"}, "hf-params-invalid", "`lr_scheduler`"),
        ({"grad_norm_clip": -1.0}, "hf-params-invalid", "`grad_norm_clip`"),
        ({"query_template": "Q"}, "hf-params-invalid", "`query_template`.*{query"),
        ({"optimizer_kwargs": {}}, "hf-params-invalid", "`optimizer_kwargs.lr` is None"),
        ({"optimizer_kwargs": {"lr": 0}}, "hf-params-invalid", "`optimizer_kwargs.lr` is 0"),
        ({"optimizer_kwargs": {"lr": 1, "weight_decy": 0.1}}, "hf-params-invalid",
         "`optimizer_kwargs.weight_decy`.*weight_decay"),
        ({"optimizer_kwargs": {"lr": 1, "betas": [0.9, 0.95]}}, "hf-params-invalid",
         "`optimizer_kwargs.betas`"),
        ({"optimizer_kwargs": {"lr": 1, "weight_decay": -1}}, "hf-params-invalid",
         "`optimizer_kwargs.weight_decay` is -1"),
        ({"optimizer_type": "SGD"}, "hf-experiment-unsupported", "optimizer_type = 'SGD'"),
        ({"optimizer_type": "lora+"}, "hf-experiment-unsupported", "lora_plus"),
        ({"dino_model_id": "x"}, "hf-experiment-unsupported", "image-generation"),
    ],
)  # fmt: skip
def test_unsupported_key_refused(task: Path, params: dict[str, Any], code: str, says: str) -> None:
    """An unsupported key is refused by name."""
    with pytest.raises(UsageError, match=f"(?s){says}") as refused:
        read(task, **params)
    assert refused.value.code == code
    if code == "hf-params-invalid":
        assert str(task / "experiments" / LORA / "training_params.json") in refused.value.cause


def test_wrong_default_names_file(task: Path) -> None:
    """A wrong default is reported with its file."""
    defaults = task / "default_training_params.json"
    value = json.loads(defaults.read_text())
    del value["max_steps"]
    defaults.write_text(json.dumps(value | {"seed": -1}))
    with pytest.raises(UsageError, match="hf-params-invalid") as refused:
        experiments.read_experiment(task / "experiments" / LORA, None)
    assert str(defaults) in refused.value.cause
    defaults.write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        experiments.read_experiment(task / "experiments" / LORA, None)
    defaults.write_text("[]")
    with pytest.raises(UsageError, match="not a JSON object"):
        experiments.read_experiment(task / "experiments" / LORA, None)


def test_lora_fa_maps_to_method(task: Path) -> None:
    """PEFT's LoRA-FA is a method of its own here."""
    with pytest.raises(UsageError, match="lora_fa") as refused:
        experiments.read_experiment(task / "experiments" / LORA_FA, None)
    assert refused.value.code == "hf-experiment-unsupported"
    assert "bakeoff methods lora_fa" in refused.value.try_


def test_folders_that_are_none(task: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hf-experiment-missing"):
        experiments.read_experiment(task, None)
    lone = Path(shutil.copytree(task / "experiments" / LORA, tmp_path / "a" / "b" / "c" / "lone"))
    with pytest.raises(UsageError, match="hf-defaults-missing"):
        experiments.read_experiment(lone, None)
    assert (
        experiments.read_experiment(lone, task / "default_training_params.json").name == "c--lone"
    )
    (lone / "adapter_config.json").write_text(json.dumps({"peft_type": "LORAX"}))
    given = experiments.read_experiment(lone, task / "default_training_params.json")
    with pytest.raises(UsageError, match="unknown-peft-type") as refused:
        experiments.add_contender(study(), given)
    assert "LORA" in refused.value.try_


def small(tmp_path: Path, model: Path) -> dict[str, Any]:
    values = [{"query": f"{r['text']} ?", "response": r["json"]} for r in rows()]
    data = write_jsonl(tmp_path / "math.jsonl", values)
    return {
        "name": "math",
        "base": {"model": str(model)},
        "data": {
            "train": str(data),
            "columns": {"prompt": "Command : {query}", "completion": "{response}"},
            "limit": {"train": 20, "validation": 4, "test": 4},
        },
        "task": {"kind": "sft", "max_length": 64, "max_new_tokens": 4},
        "methods": {"control": "lora", "contenders": ["ia3"]},
        "budget": {
            "steps": 2, "batch_size": 4, "settings": 2, "seeds": 1, "race": "off", "extend": 0,
        },
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
    }  # fmt: skip


def test_experiment_runs_in_study(task: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """A PEFT experiment runs in a study.

    Twice: the same command goes on with the study, and does nothing again.
    """
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(small(tmp_path, tiny_llama)))
    folder = task / "experiments" / IA3
    command = ["run", str(path), "--hf-experiment", str(folder), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    name = "ia3--llama-3.2-3B-all-attn-5k-lr0.005"
    row = next(m for m in json.loads(done.stdout)["methods"] if m["method"] == name)
    assert row["status"] == "done"
    assert {s["setting"]["learning_rate"] for s in row["settings"]} == {1.58e-3, 5e-3}
    assert f"{name}: " in done.stderr.replace("\n", " ")
    frozen = tomllib.loads((tmp_path / "out" / "study.toml").read_text())
    theirs = json.loads((folder / "adapter_config.json").read_text())
    assert frozen["method"][name]["config"]["target_modules"] == theirs["target_modules"]
    (adapter,) = {
        t.parent
        for t in (tmp_path / "out" / "trials").glob("*/adapter/adapter_config.json")
        if json.loads(t.read_text())["target_modules"] is not None
        and sorted(json.loads(t.read_text())["target_modules"]) == sorted(theirs["target_modules"])
    }
    assert (adapter / "adapter_model.safetensors").is_file()
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["methods"] == json.loads(done.stdout)["methods"]


def test_unknown_config_argument_named(task: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """An argument that the config class lacks is named."""
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(small(tmp_path, tiny_llama)))
    folder = task / "experiments" / LORA
    adapter = json.loads((folder / "adapter_config.json").read_text()) | {"rnak": 4}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    command = ["run", str(path), "--hf-experiment", str(folder), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, BakeoffError)
    assert "rnak" in str(refused.exception)
    assert not list((tmp_path / "out").glob("trials/*"))


def test_conditions_written_without_study_file(
    task: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Without a study file, the experiment's conditions are written."""
    from bakeoff.cli.run import write_study

    given = experiments.read_experiment(task / "experiments" / LORA, None)
    values = [{"query": r["text"], "response": r["json"]} for r in rows()]
    data = write_jsonl(tmp_path / "math.jsonl", values)
    path = write_study(tmp_path / "out", str(tiny_llama), str(data), [], "lora,ia3", 7, given)
    written = tomllib.loads(path.read_text())
    assert written["base"]["model"] == str(tiny_llama.resolve())
    assert written["data"]["columns"] == experiments.data_columns(given)
    assert written["task"] == {"kind": "sft", "max_length": 768, "max_new_tokens": 300}
    assert (written["budget"]["steps"], written["budget"]["batch_size"]) == (7, 4)
    assert experiments.add_contender(parse_spec(written), given).methods.contenders == (
        "ia3",
        given.name,
    )
