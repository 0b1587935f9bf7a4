"""What a method would train on the user's own model, from its architecture alone: no weights."""

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
"""What rules that name the study's steps are resolved with; no count depends on it."""
SUFFIXES = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
"""How the names of models end that are trained to continue a text."""


def count_on_model(value: dict[str, Any]) -> dict[str, Any]:
    """Count for the method ``value["entry"]`` and the model at ``value["path"]``.

    Returns ``{"parameters": n}``, or ``{"reason": ...}`` where it cannot be attached.
    """
    entry = MethodEntry(**value["entry"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries warn of is no part of the answer
            return {
                "parameters": count(
                    entry, dict(entry.config), _load_architecture(value["path"]), STEPS
                )
            }
    except Exception as error:  # whatever PEFT raises is the answer
        return {"reason": error_reason(error)}


def _load_architecture(path: str) -> Architecture:
    config = AutoConfig.from_pretrained(path, **from_pretrained_kwargs(path, None))
    named = (config.architectures or [""])[0]
    task = next((t for suffix, t in SUFFIXES.items() if named.endswith(suffix)), "SEQ_CLS")
    if config.is_encoder_decoder:
        task = "SEQ_2_SEQ_LM"
    return load_architecture(path, task, tiny.HEADS if task == "SEQ_CLS" else ())
