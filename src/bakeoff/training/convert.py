"""Convert a trial's weights for serving, and score the written files.

The scored model is loaded from the files that were written, not taken from memory.
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
from bakeoff.methods import load_saved
from bakeoff.methods.load_saved import WEIGHTS
from bakeoff.metrics import load
from bakeoff.training.evaluate import score_reference_model
from bakeoff.training.reload import ReferenceModel, saved_location
from bakeoff.training.setup import requested_switches

ADAPTER, MERGED = "adapter", "merged"
MODEL = "model"
"""Form of weights: a whole model, saved by a hook or by merging."""


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Convert and score a trial's weights; a worker's entry point.

    ``value``: the ``segment`` of one trial, the ``form`` (``adapter``: as it was saved, ``merged``:
    a whole model, ``lora``: converted to LoRA of ``rank``) and the folder ``target``, which is
    created. Returns the ``kind`` of what was saved (adapter, model, tensors), the mean validation
    ``loss`` in nats, ``scores`` on test, a ``note`` on what was done, and whether the base's files
    were ``dequantized``; or an ``error`` to raise.
    """
    segment, target = Segment.from_json(value["segment"]), Path(value["target"])
    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT's; the scores show what matters
            return {**_convert(segment, value, target), "error": None}
    except BakeoffError as error:
        return {"error": error.to_json()}


def _convert(segment: Segment, value: dict[str, Any], target: Path) -> dict[str, Any]:
    # first, before the conditions change: the trial's id depends on them, and its path on the id
    kind, path = saved_location(segment)
    origin = Path(segment.folder) / path
    trial = _on_local_device(segment.trials[0])
    if value["form"] == MERGED:  # merge into the base's own precision, not into 4 bits
        trial = _with_conditions(trial, quantize=None, quantizer=None)
    reference = ReferenceModel.of(dataclasses.replace(segment, trials=(trial,)))
    dequantized = None
    if value["form"] == ADAPTER:
        shutil.copytree(origin, target)
        written = kind
    else:
        if value["form"] == MERGED:
            base, dequantized = _plain_base(reference)
            model = load_saved.load_onto(base, origin, kind, reference.c.trusted)
            written = _merge(model, kind, target)
        else:
            model = reference.load(origin, kind)
            written = _to_lora(model, kind, value["rank"], target)
        del model
        free_memory()
    if written == MODEL:
        _save_tokenizer(reference, target)
    model = reference.to_device(reference.load(target, written))
    rows = read_rows(Path(segment.folder) / "data" / "test.jsonl")
    metric = load.load_metric(reference.c, Path(segment.folder))
    switches, _ = requested_switches(reference.segment)
    scores, note = score_reference_model(
        metric, reference.task, model, reference.tokenizer, rows, reference.c, switches
    )
    trained = segment.trials[0].conditions.device
    if reference.c.device != trained:
        note = f"Scored on {reference.c.device}: the study trained on {trained}, which is not here."
    return {
        "kind": written, "loss": reference.loss(model), "scores": dataclasses.asdict(scores),
        "note": " ".join(filter(None, (note, dequantized))) or None,
        "dequantized": dequantized is not None,
    }  # fmt: skip


def _plain_base(reference: ReferenceModel) -> tuple[nn.Module, str | None]:
    """Return the base with plain weights, and a note if its files are quantised.

    Raises:
        PreflightError: ``cannot-merge``, if transformers cannot dequantise them.
    """
    base: Any = reference.base()
    quantization = getattr(base.config, "quantization_config", None)
    if quantization is None:
        return base, None
    method = getattr(quantization, "quant_method", None) or "unknown"
    method = str(getattr(method, "value", method))
    try:
        plain = base.dequantize()
    except (AttributeError, ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise PreflightError(
            "cannot-merge",
            f"The files of this base are quantised ({method}), and transformers cannot turn them "
            f"into plain weights to merge into: {first_line(error)}",
            "`--as adapter`, which is loaded onto the same files; or a study on the base's own "
            "files, before they were quantised.",
        ) from error
    for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(plain, flag):  # PEFT asks for them before it merges
            setattr(plain, flag, False)
    _forget_conversions(plain)
    dtype = str(next(plain.parameters()).dtype).removeprefix("torch.")
    note = (
        f"The files of the base are quantised ({method}); the merged model has plain weights in "
        f"{dtype} and is larger."
    )
    return plain, note


def _forget_conversions(model: Any) -> None:
    """Drop the quantiser's conversions, which transformers would reverse to save its tensors."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [c for c in conversions if _is_reversible(c)]


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def _with_conditions(trial: Trial, **changes: Any) -> Trial:
    return dataclasses.replace(trial, conditions=dataclasses.replace(trial.conditions, **changes))


def _on_local_device(trial: Trial) -> Trial:
    """Return the trial with a device of this machine, which may not be the one it trained on."""
    try:
        resolve_device(trial.conditions.device)
    except PreflightError:
        return _with_conditions(trial, device=resolve_device("auto"))
    return trial


def _merge(model: Any, kind: str, target: Path) -> str:
    """Write the model with its adapter merged into the base's weights.

    Raises:
        PreflightError: ``cannot-merge``.
    """
    if kind == ADAPTER:
        model = _merge_and_unload(model)
    try:
        model.save_pretrained(target)
    except NotImplementedError as error:
        raise PreflightError(
            "cannot-merge",
            f"transformers cannot save the merged model: {first_line(error)}",
            "`--as adapter`.",
        ) from error
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
    """Write the adapter as plain LoRA with the same rank in all layers.

    Raises:
        PreflightError: ``cannot-convert``.
    """
    other = "`--as merged` or `--as adapter`"
    try:
        if kind != ADAPTER:
            raise TypeError("it was trained in the base's own weights")
        if model.active_peft_config.is_prompt_learning:
            other = "`--as adapter`"
        name = model.peft_config[model.active_adapter].base_model_name_or_path
        config, tensors = peft.convert_to_lora(model, rank)
        config.base_model_name_or_path = name
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise PreflightError(
            "cannot-convert",
            f"PEFT cannot convert this method to LoRA: {first_line(error)}",
            f"{other}; `bakeoff methods` says what converts.",
        ) from error
    target.mkdir(parents=True)
    config.save_pretrained(str(target))
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return ADAPTER


def _save_tokenizer(reference: ReferenceModel, target: Path) -> None:
    """Write the tokenizer next to a whole model, with the chat template used in training."""
    template = (reference.c.task_options.get("chat") or {}).get("template")
    if template is not None:
        reference.tokenizer.chat_template = template
    reference.tokenizer.save_pretrained(target)
