"""Probe what can be done with a trained method: save, reload, merge, disable, convert.

Each result is a relative difference of logits, or the reason why it cannot be measured. The trained
model is copied before an operation that changes it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor

from bakeoff.core.errors import first_line
from bakeoff.methods import load_saved, vllm
from bakeoff.methods.capability_records import Measurement
from bakeoff.methods.hook import SaveContext
from bakeoff.training.preflight.capabilities import tiny
from bakeoff.training.preflight.capabilities.train import (
    TrainedModel,
    difference,
    logits,
    round_finite,
)

BASE_NAME = "tiny"
MAX_LENGTH = 160


def error_reason(error: BaseException) -> str:
    """Return an error as the short reason that a capability record holds."""
    return first_line(error, MAX_LENGTH, with_type=False)


def try_measure(measure: Callable[[], float]) -> Measurement:
    """Return a measurement, or the error as its reason."""
    try:
        return Measurement(measure())
    except Exception as error:
        return Measurement(None, error_reason(error))


def save(at: TrainedModel, folder: Path) -> int:
    """Let the hook save the method; return the bytes of the saved tensors."""
    start = at.start if at.hook.needs_start else None
    at.hook.save(at.model, folder, SaveContext(BASE_NAME, 0, start))
    tensors = [t for file in folder.glob("*.safetensors") for t in load_file(file).values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def reload_difference(at: TrainedModel, folder: Path) -> float:
    """Return the difference of the weights, reloaded in plain PEFT, from the trained model."""
    model = load_saved.load_onto(tiny.base(at.kind), folder, at.hook.saved_as)
    return difference(logits(model, at.kind), at.after)


def merge_difference(at: TrainedModel) -> float:
    """Return the difference of the merged model from the trained one."""
    if at.hook.saved_as != "adapter":
        return 0.0  # the base's own tensors were trained: there is nothing to merge
    if at.model.active_peft_config.is_prompt_learning:
        raise TypeError("virtual tokens are input: there is no weight to merge them into")
    if not hasattr(at.model.base_model, "merge_and_unload"):
        raise TypeError(f"PEFT's {type(at.model.base_model).__name__} has no merge_and_unload")
    merged = copy.deepcopy(at.model).merge_and_unload()
    return difference(logits(merged, at.kind), at.after)


def disable_difference(at: TrainedModel) -> float:
    """Return the difference of the model with its adapter disabled from the base model.

    PEFT disables the trained output layer of the task together with the adapter.
    """
    if at.hook.saved_as != "adapter":
        raise TypeError("there is no adapter to switch off")
    model = copy.deepcopy(at.model)
    with model.disable_adapter():
        off = logits(model, at.kind)
    return difference(off, at.base_logits)


def conversion_loss(at: TrainedModel, rank: int) -> float:
    """Return the share of the method's effect that PEFT's conversion to LoRA loses."""
    config, tensors = peft.convert_to_lora(copy.deepcopy(at.model), rank)
    lora = peft.get_peft_model(tiny.base(at.kind), config)
    unknown = peft.set_peft_model_state_dict(lora, tensors)
    if unknown.unexpected_keys:
        raise KeyError(f"{unknown.unexpected_keys[0]} is no tensor of the LoRA")
    return _lost_effect(at, logits(lora, at.kind))


def plain_lora_loss(at: TrainedModel, folder: Path) -> float:
    """Return the share of the method's effect that is lost if its file is read as plain LoRA.

    Inference servers read it so: W + scale B A with one scale for all layers, and nothing else.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tensors = load_file(folder / load_saved.WEIGHTS) if config else {}
    if (why := vllm.plain_lora_problem(config, tensors)) is not None:
        raise TypeError(why)
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config["use_rslora"] else 1)
    model = tiny.base(at.kind)
    with torch.no_grad():
        for name, a in tensors.items():
            if name.endswith(".lora_A.weight"):
                own = name.removesuffix(".lora_A.weight")
                layer = model.get_submodule(own.removeprefix("base_model.model."))
                b = tensors[f"{own}.lora_B.weight"]
                if (len(b), a.shape[1]) != layer.weight.shape or len(a) != b.shape[1]:
                    raise TypeError("its A and B are no factors of the layer's weight")
                layer.weight += scale * b @ a
    return _lost_effect(at, logits(model, at.kind))


def _lost_effect(at: TrainedModel, out: Tensor) -> float:
    return round_finite((out - at.after).norm() / (at.after - at.base_logits).norm())
