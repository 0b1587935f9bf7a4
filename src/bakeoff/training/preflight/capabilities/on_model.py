"""Count the parameters of a method on the user's model, from its architecture without weights."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import AutoConfig

from bakeoff.core.trial import MethodEntry
from bakeoff.engine.safe_loading import from_pretrained_kwargs
from bakeoff.training.preflight.capabilities import tiny
from bakeoff.training.preflight.capabilities.post_training import error_reason
from bakeoff.training.preflight.parameter_count import Architecture, count, load_architecture

STEPS = 1000
"""Steps for arguments that depend on them; no count does."""
SUFFIXES = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
"""Endings of model class names -> PEFT's task type."""


def count_on_model(value: dict[str, Any]) -> dict[str, Any]:
    """Count for the method ``value["entry"]`` and the model at ``value["path"]``.

    A worker's entry point. Returns ``{"parameters": n}``, or ``{"reason": ...}`` if the method
    cannot be attached.
    """
    entry = MethodEntry(**value["entry"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries' warnings are not part of the result
            return {
                "parameters": count(
                    entry, dict(entry.config), _load_architecture(value["path"]), STEPS
                )
            }
    except Exception as error:  # PEFT raises many kinds; the error is the result
        return {"reason": error_reason(error)}


def _load_architecture(path: str) -> Architecture:
    config = AutoConfig.from_pretrained(path, **from_pretrained_kwargs(path, None))
    class_name = (config.architectures or [""])[0]
    task = next((t for suffix, t in SUFFIXES.items() if class_name.endswith(suffix)), "SEQ_CLS")
    if config.is_encoder_decoder:
        task = "SEQ_2_SEQ_LM"
    return load_architecture(path, task, tiny.HEADS if task == "SEQ_CLS" else ())
