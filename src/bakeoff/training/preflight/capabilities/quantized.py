"""Probe whether a method trains on a tiny base with quantised linear layers.

transformers quantises while loading, as for users: bitsandbytes with 4 (nf4) and 8 bits, torchao
with int8 weights.
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
from bakeoff.methods.capability_records import QuantizationSupport, at_probed_rank
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
"""Kinds of quantised base -> the package that quantises."""
BITS = {"4bit": "nf4", "8bit": "int8", "int8": "int8"}
"""Kinds of quantised base -> their names in a study file."""
TOLERANCE = 0.5
"""Largest relative difference of logits from the same method on the plain base. Rounding a tiny
random base to 4 bits changes them by 0.2; reading packed bytes as weights changes them by more."""


def cannot_train_reason(entry: MethodEntry, quantize: str, quantizer: str) -> str | None:
    """Return why ``entry`` does not train on a quantised base; None if it does, or is not known.

    It is not known for methods that cannot be attached to the plain tiny Llama either: their target
    modules may be named for another base.
    """
    entry = at_probed_rank(entry)
    kind = next(k for k in PACKAGES if (BITS[k], PACKAGES[k]) == (quantize, quantizer))
    try:
        plain = train(entry, dict(entry.config), "llama", tiny.base("llama"))
    except Exception:  # PEFT raises many kinds: nothing is known
        return None
    with tempfile.TemporaryDirectory() as folder:
        support = probe_quantized(entry, kind, Path(folder), plain)
    return support.reason if support.works is False else None


def probe_quantized(
    entry: MethodEntry, kind: str, folder: Path, plain: TrainedModel
) -> QuantizationSupport:
    """Return whether ``entry`` trains on a tiny Llama quantised as ``kind``.

    ``plain`` is the method trained on the plain base. With its trained tensors, the logits on the
    quantised base must be close to its logits.
    """
    package = PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        return QuantizationSupport(None, f"{package} is not installed")
    try:
        base = _quantized_base(kind, folder)
    except Exception as error:  # the package does not work: nothing is known about the method
        return QuantizationSupport(None, f"{package}: {error_reason(error)}")
    try:
        at = train(entry, resolve_config(entry), "llama", base)
        off = max(difference(at.before, plain.before), _transplant_difference(at, plain))
        if not off <= TOLERANCE:
            raise ProbeFailed(f"its logits are {off:.2g} (relative) off those on the plain base")
    except Exception as error:  # of any kind: the error is the result
        return QuantizationSupport(False, error_reason(error))
    return QuantizationSupport(True)


def _transplant_difference(at: TrainedModel, plain: TrainedModel) -> float:
    """Copy the trained tensors of ``plain`` into ``at``; return the difference of their logits."""
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
