"""Write a trial's weights in the form that a server reads, and score what was written.

Beside ``reloading`` in the training half; carried by an executor for ``delivery``. What is scored
is loaded from the files that were written, never what was in memory when they were.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import save_file
from torch import nn

from bakeoff.core.errors import BakeoffError, PreflightError, first_line
from bakeoff.core.trial import Segment, Trial
from bakeoff.data.rows import read_rows
from bakeoff.engine.device import free_memory, resolve_device
from bakeoff.methods.load_saved import WEIGHTS
from bakeoff.metrics import load
from bakeoff.training.evaluate import score_reference_model
from bakeoff.training.reload import ReferenceModel, saved_location
from bakeoff.training.setup import requested_switches

ADAPTER, MERGED = "adapter", "merged"
MODEL = "model"
"""What a hook, or merging, saves where a whole model is written."""


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Convert and score: what an executor calls, JSON in and out.

    ``value``: the ``segment`` of one trial, the ``form`` (``adapter``: as it was saved, ``merged``:
    a whole model, ``lora``: converted to LoRA of ``rank``) and the folder ``target``, which is
    made. Returns what was saved (``kind``: adapter, model, tensors), the mean validation ``loss``
    in nats, ``scores`` on test and a ``note`` on how they were had; or an ``error`` to raise.
    """
    segment, target = Segment.from_json(value["segment"]), Path(value["target"])
    try:
        with warnings.catch_warnings(action="ignore"):  # of PEFT's: the scores tell
            return {**_convert(segment, value, target), "error": None}
    except BakeoffError as error:
        return {"error": error.to_json()}


def _convert(segment: Segment, value: dict[str, Any], target: Path) -> dict[str, Any]:
    kind, path = saved_location(segment)  # first: under other conditions it would be another trial
    origin = Path(segment.folder) / path
    trial = _on_local_device(segment.trials[0])
    if value["form"] == MERGED:  # into weights in the base's own precision, not in 4 bits
        trial = _with_conditions(trial, quantize=None, quantizer=None)
    at = ReferenceModel.of(dataclasses.replace(segment, trials=(trial,)))
    if value["form"] == ADAPTER:
        shutil.copytree(origin, target)
        made = kind
    else:
        model = at.load(origin, kind)
        if value["form"] == MERGED:
            made = _merge(model, kind, target)
        else:
            made = _to_lora(model, kind, value["rank"], target)
        del model
        free_memory()
    if made == MODEL:
        _save_tokenizer(at, target)
    model = at.to_device(at.load(target, made))
    rows = read_rows(Path(segment.folder) / "data" / "test.jsonl")
    metric = load.load_metric(at.c, Path(segment.folder))
    switches, _ = requested_switches(at.segment)
    scores, note = score_reference_model(metric, at.task, model, at.tokenizer, rows, at.c, switches)
    trained = segment.trials[0].conditions.device
    if at.c.device != trained:
        note = f"Scored on {at.c.device}; the study trained on {trained}, which is not here."
    found = {"loss": at.loss(model), "scores": dataclasses.asdict(scores), "note": note}
    return {"kind": made, **found}


def _with_conditions(trial: Trial, **changes: Any) -> Trial:
    return dataclasses.replace(trial, conditions=dataclasses.replace(trial.conditions, **changes))


def _on_local_device(trial: Trial) -> Trial:
    """Return the trial on a device of this machine: it may have been trained on another one."""
    try:
        resolve_device(trial.conditions.device)
    except PreflightError:
        return _with_conditions(trial, device=resolve_device("auto"))
    return trial


def _merge(model: Any, kind: str, target: Path) -> str:
    """Write the model with its adapter in the base's weights.

    Raises:
        PreflightError: ``cannot-merge``.
    """
    if kind == ADAPTER:
        model = _merge_and_unload(model)
    model.save_pretrained(target)
    return MODEL


def _merge_and_unload(model: Any) -> nn.Module:
    try:
        if model.active_peft_config.is_prompt_learning:
            raise TypeError("its virtual tokens are input, there is no weight to merge them into")
        merged: nn.Module = model.merge_and_unload()
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise PreflightError(
            "cannot-merge",
            f"PEFT cannot merge this method into the base: {first_line(error)}",
            "`--as adapter`; `bakeoff methods` says what each method can be served as.",
        ) from error
    return merged


def _to_lora(model: Any, kind: str, rank: int, target: Path) -> str:
    """Write the adapter as plain LoRA of one rank in all layers.

    Raises:
        PreflightError: ``cannot-convert``.
    """
    try:
        if kind != ADAPTER:
            raise TypeError("it was trained in the base's own weights")
        name = model.peft_config[model.active_adapter].base_model_name_or_path
        config, tensors = peft.convert_to_lora(model, rank)
        config.base_model_name_or_path = name
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise PreflightError(
            "cannot-convert",
            f"PEFT cannot convert this method to LoRA: {first_line(error)}",
            "`--as merged` or `--as adapter`; `bakeoff methods` says what converts.",
        ) from error
    target.mkdir(parents=True)
    config.save_pretrained(str(target))
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return ADAPTER


def _save_tokenizer(at: ReferenceModel, target: Path) -> None:
    """Write the tokenizer beside a whole model, with the chat template that it was trained on."""
    template = (at.c.task_options.get("chat") or {}).get("template")
    if template is not None:
        at.tokenizer.chat_template = template
    at.tokenizer.save_pretrained(target)
