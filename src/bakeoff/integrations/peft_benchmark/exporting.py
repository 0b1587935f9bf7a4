"""Export a study's final trials in the format of ``method_comparison``: one JSON file per trial.

Sections and field names are PEFT's; unknown values are null. Values that the format has no field
for (the metric, its number of items, the kind of memory) are stored in ``meta_info.bakeoff``, from
which ``importing`` reads them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bakeoff.analysis.trial_runs import is_final
from bakeoff.core.errors import UsageError
from bakeoff.core.names import quote_path
from bakeoff.core.record import StudyRecord
from bakeoff.core.redact import redact_value
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import RETRYABLE, TRIALS
from bakeoff.integrations.peft_benchmark.benchmark import BAKEOFF_COSTS, BAKEOFF_SECTION
from bakeoff.integrations.peft_benchmark.results import SUCCESS, TEST
from bakeoff.methods import user_defined
from bakeoff.study.record import read_record

DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
CANCELED = "canceled"
SCHEDULE = "warmup-stable-decay"
"""The schedule of bakeoff; PEFT's files have ``cosine`` or null."""
PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")


def result_files(record: StudyRecord, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of a file for each ended final trial, by file name.

    ``folder`` is the study folder.

    Raises:
        UsageError: ``hf-json-imported``, ``hf-json-nothing``.
    """
    if record.imported is not None:
        raise UsageError(
            "hf-json-imported",
            f"This study was imported from {record.imported.source}: its files have that format.",
            "use those files.",
        )
    ended = [(t, r) for t, r in record.trials if r is not None and is_final(t, r)]
    scored = {(t.method.name, t.seed) for t, _ in ended}
    # a replicate in which nothing could be scored is there with its failures
    ended += [
        (t, r)
        for t, r in record.trials
        if r is not None and r.status in RETRYABLE and (t.method.name, t.seed) not in scored
    ]
    scores = {s for _, r in ended if "test" in r.splits for s in r.splits["test"].scores}
    binary = scores <= {0.0, 1.0} and record.metric.better == "higher"
    contents = {}
    for trial, result in ended:
        value = _result_file(record, trial, result, binary, folder)
        contents[f"{_name(trial).replace('/', '--')}.json"] = value
    if not contents:
        raise UsageError(
            "hf-json-nothing",
            "No final trial has ended yet.",
            f"`bakeoff run {quote_path(folder)}` continues the study.",
        )
    return contents


def write_files(contents: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write the files into a folder, which is created."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in contents.items():
        text = json.dumps(redact_value(value), indent=2, allow_nan=False)
        (out / name).unlink(missing_ok=True)  # replace a link, do not follow it
        (out / name).write_text(text + "\n", encoding="utf-8")


def _name(trial: Trial) -> str:
    """Return ``<method>/<setting>-seed_<n>``, like PEFT's experiment folders."""
    setting = "-".join(
        f"{'lr' if key == 'learning_rate' else key}_{value}" for key, value in trial.setting.items()
    )
    safe = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in setting)
    return f"{trial.method.name}/{safe}-seed_{trial.seed}"


def _result_file(
    record: StudyRecord, trial: Trial, result: TrialResult, binary: bool, folder: Path
) -> dict[str, Any]:
    """Return the contents of a trial's file; ``binary``: every test score is 0 or 1."""
    cost = record.costs.get(trial.method.name)
    device = cost is not None and str(cost.memory_kind).startswith("device")
    return {
        "run_info": {
            "created_at": None,
            "total_time": result.seconds,
            "experiment_name": _name(trial),
            "peft_branch": None,
            "peft_worktree_is_dirty": None,
            "train_config": _train_config(trial),
            "peft_config": _peft_config(trial, folder),
            "error_msg": result.reason or "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": cost.train_peak_bytes if cost and device else None,
            "accelerator_memory_reserved_99th": None,
            "train_time": result.train_seconds,
            "file_size": result.adapter_bytes,
            "num_trainable_params": result.trainable_parameters,
            "num_total_params": None,
            "status": SUCCESS if result.status is Status.DONE else CANCELED,
            "metrics": _metrics(trial, result, "accuracy" if binary else record.metric.name),
        },
        "meta_info": {
            **_meta_info(record, trial),
            BAKEOFF_SECTION: _bakeoff_section(record, trial, result, cost) | {"binary": binary},
        },
    }


def _train_config(trial: Trial) -> dict[str, Any]:
    conditions, options = trial.conditions, trial.conditions.task_options
    return {
        "model_id": conditions.base,
        "dtype": {"nf4": "int4", "int8": "int8"}.get(
            conditions.quantize or "", DTYPES.get(conditions.precision, conditions.precision)
        ),
        "max_seq_length": options.get("max_length"),
        "batch_size": conditions.batch_size,
        "batch_size_eval": conditions.evaluation_batch_size,
        "max_steps": conditions.steps,
        "eval_steps": max(1, conditions.steps // conditions.validations),
        "compile": None,
        "use_gc": None,
        "query_template": (options.get("columns") or {}).get("prompt"),
        "seed": trial.seed,
        "grad_norm_clip": conditions.clip,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": trial.learning_rate, "weight_decay": conditions.weight_decay},
        "lr_scheduler": SCHEDULE,
        "use_amp": None,
        "autocast_adapter_dtype": None,
        "generation_kwargs": {
            "do_sample": False,
            "max_new_tokens": options.get("max_new_tokens"),
        },
        "attn_implementation": None,
        "init_kv_cache_prefix": None,
    }


def _peft_config(trial: Trial, folder: Path) -> dict[str, Any] | None:
    """Return the adapter configuration that PEFT saved, else its arguments; None without PEFT."""
    if trial.method.peft is None:
        return None
    saved = folder / TRIALS / trial.id / "adapter" / "adapter_config.json"
    if saved.is_file():
        value: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
        return value
    return {"peft_type": user_defined.peft_type_of(trial.method.peft), **trial.config}


def _metrics(trial: Trial, result: TrialResult, metric: str) -> list[dict[str, Any]]:
    """Return the curve; its last entry holds the test score under the name ``metric``."""
    batch = trial.conditions.batch_size
    entries: list[dict[str, Any]] = [
        {
            "step": point.step,
            "valid loss": point.validation_loss,
            "train loss": point.train_loss,
            "train samples": point.step * batch,
        }
        for point in result.curve
    ]
    test = result.splits.get("test")
    if result.status is Status.DONE and test is not None and test.scores:
        steps = trial.conditions.steps
        entries.append(
            {
                "step": steps,
                f"{TEST}{metric}": sum(test.scores) / len(test.scores),
                "train loss": result.curve[-1].train_loss if result.curve else None,
                "train samples": steps * batch,
                "train total tokens": result.train_tokens,
                "forgetting": _forgetting(result),
            }
        )
    return entries


def _forgetting(result: TrialResult) -> float | None:
    """Return the change of the loss on general text in nats per token, as PEFT does."""
    known = result.forgetting
    if known is None:
        return None
    return (math.fsum(known.losses) - math.fsum(known.base_losses)) / sum(known.tokens)


def _meta_info(record: StudyRecord, trial: Trial) -> dict[str, Any]:
    known = record.provenance
    versions = known.get("versions") or {}
    hardware = known.get("hardware")
    return {
        "model_info": {"sha": trial.conditions.revision, "created_at": None},
        "dataset_info": {
            split: {"sha": sha, "created_at": None} for split, sha in trial.conditions.data.items()
        },
        "package_info": {
            f"{package}-{what}": versions.get(package) if what == "version" else None
            for package in PACKAGES
            for what in ("version", "commit-hash")
        },
        "system_info": {
            "system": None,
            "release": None,
            "version": None,
            "machine": None,
            "processor": None,
            "accelerator": hardware if isinstance(hardware, str) else None,
        },
        "pytorch_info": None,
    }


def _bakeoff_section(
    record: StudyRecord, trial: Trial, result: TrialResult, cost: Cost | None
) -> dict[str, Any]:
    """Return the values that PEFT's format has no field for."""
    return {
        "study": record.name,
        "trial": trial.id,
        "method": trial.method.name,
        "setting": trial.setting,
        "task": record.task,
        "metric": dataclasses.asdict(record.metric),
        "n_test_items": record.n_items.get("test"),
        "n_validation_items": record.n_items.get("validation"),
        "status": result.status.value,
        "cost": {key: getattr(cost, key) if cost else None for key in BAKEOFF_COSTS},
    }


def write_results(out: Path, target: Path) -> list[str]:
    """Write each final trial of a study in the format of ``method_comparison``; return file names.

    Raises:
        UsageError: ``no-study``, ``hf-json-imported``, ``hf-json-nothing``.
    """
    contents = result_files(read_record(out, examples=False), out)
    write_files(contents, target)
    return list(contents)
