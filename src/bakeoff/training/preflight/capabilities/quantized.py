"""Whether a method trains on a base whose linear layers are quantised, where the package is there.

Quantised as users do it, by transformers while it loads: bitsandbytes in 4 (nf4) and 8 bits,
torchao's int8 weights. Asked by the probe of all capabilities, and by a quantised study's preflight
of its own methods.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import LlamaForCausalLM

from bakeoff.core.trial import MethodEntry
from bakeoff.engine import quantization
from bakeoff.methods.capability_records import QuantizationSupport
from bakeoff.training.preflight.capabilities import tiny
from bakeoff.training.preflight.capabilities.post_training import error_reason
from bakeoff.training.preflight.capabilities.train import (
    ProbeFailed,
    TrainedModel,
    difference,
    logits,
    resolve_config,
    train,
)

PACKAGES = {"4bit": "bitsandbytes", "8bit": "bitsandbytes", "int8": "torchao"}
"""Kinds of quantised base, and the package that each takes."""
BITS = {"4bit": "nf4", "8bit": "int8", "int8": "int8"}
"""What a study file calls them."""
TOLERANCE = 0.5
"""Largest relative difference of logits from the same method on the plain base. Rounding a tiny
random base to 4 bits moves them by 0.2; taking packed bytes for weights moves them by more."""


def cannot_train_reason(entry: MethodEntry, quantize: str, quantizer: str) -> str | None:
    """Return why ``entry`` does not train on a quantised base; None where it does, or nobody knows.

    Nobody knows of one that the plain tiny Llama cannot take either (its targets may be named for
    another base).
    """
    kind = next(k for k in PACKAGES if (BITS[k], PACKAGES[k]) == (quantize, quantizer))
    try:
        plain = train(entry, dict(entry.config), "llama", tiny.base("llama"))
    except Exception:  # whatever PEFT raises: no verdict
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = probe_quantized(entry, kind, Path(folder), plain)
    return found.reason if found.works is False else None


def probe_quantized(
    entry: MethodEntry, kind: str, folder: Path, plain: TrainedModel
) -> QuantizationSupport:
    """Return whether ``entry`` trains on a tiny Llama quantised as ``kind``.

    ``plain`` is the same on the base as it was: with its tensors the logits must be near to its.
    """
    package = PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        return QuantizationSupport(None, f"{package} is not installed")
    try:
        base = _quantized_base(kind, folder)
    except Exception as error:  # a package that is there and does not work is no verdict
        return QuantizationSupport(None, f"{package}: {error_reason(error)}")
    try:
        at = train(entry, resolve_config(entry), "llama", base)
        off = max(difference(at.before, plain.before), _transplant_difference(at, plain))
        if not off <= TOLERANCE:
            raise ProbeFailed(f"its logits are {off:.2g} (relative) off those on the plain base")
    except Exception as error:  # whatever PEFT or the package raises is the answer
        return QuantizationSupport(False, error_reason(error))
    return QuantizationSupport(True)


def _transplant_difference(at: TrainedModel, plain: TrainedModel) -> float:
    """Return how far ``at`` is from ``plain`` once it has the tensors that ``plain`` trained."""
    own, trained = (dict(m.named_parameters()) for m in (at.model, plain.model))
    found, expected = ({(n, p.shape) for n, p in t.start.items()} for t in (at, plain))
    if others := sorted(name for name, _ in found ^ expected):
        raise ProbeFailed(f"PEFT trains other tensors there than on the plain base: {others[0]}")
    with torch.no_grad():
        for name in plain.start:
            if is_traceable_wrapper_subclass(own[name]):
                raise ProbeFailed("it would train the rounded weights themselves")
            own[name].copy_(trained[name])
    return difference(logits(at.model, at.kind), plain.after)


def _quantized_base(kind: str, folder: Path) -> Any:
    plain = folder / "to-quantise"
    if not plain.is_dir():
        tiny.base("llama").save_pretrained(plain)
    found: Any = LlamaForCausalLM.from_pretrained(
        plain,
        local_files_only=True,
        **quantization.quantization_kwargs(BITS[kind], PACKAGES[kind], "cpu", "fp32", ()),
    )
    quantization.keep_trainable(found)
    return found.requires_grad_(False)
