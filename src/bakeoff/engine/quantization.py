"""Quantised bases: linear layers in 4 or 8 bits, as transformers creates them while loading.

The output layer, the task's own head, embeddings and norms are never quantised.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bakeoff.core.errors import EnvironmentProblem

QUANTIZERS = {"nf4": ("bitsandbytes",), "int8": ("bitsandbytes", "torchao")}
"""Packages that provide each kind; `auto` takes the first that is installed."""
_PACKED = ("Params4bit", "Int8Params")
"""Parameter classes of bitsandbytes, by name: the package is optional, and slow to import."""


def resolve_quantizer(quantize: str, requested: str) -> str:
    """Return the quantisation package; ``auto`` takes the first of its kind that is installed.

    Raises:
        EnvironmentProblem: ``quantizer-missing``.
    """
    candidates = QUANTIZERS[quantize] if requested == "auto" else (requested,)
    for package in candidates:
        if importlib.util.find_spec(package) is not None:
            return package
    raise EnvironmentProblem(
        "quantizer-missing",
        f'base.quantize = "{quantize}" needs {candidates[0]}, which is not installed.',
        f'`pip install "bakeoff[{candidates[0]}]"`, or leave base.quantize out.',
    )


def quantization_kwargs(
    quantize: str, quantizer: str, device: str, precision: str, heads: Sequence[str]
) -> dict[str, Any]:
    """Return the quantisation arguments of ``from_pretrained``; ``heads`` are not quantised.

    nf4 as in QLoRA (arXiv 2305.14314): blocks of 64 weights, with double quantisation of their
    scales and products in the study's precision. int8 by bitsandbytes is LLM.int8 (arXiv
    2208.07339): activations are rounded too, except outliers beyond 6.0. int8 by torchao rounds
    only the weights.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    skipped = list(heads) or None  # None: transformers skips the output layer
    config: Any
    if quantizer == "torchao":
        # optional, and transformers imports it only here
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
        # torchao tensors multiply in the dtype of the weights that they represent
        return {"quantization_config": config, "device_map": {"": device}, "dtype": compute}
    if quantize == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skipped,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return {"quantization_config": config, "device_map": {"": device}}


def unsupported_accelerators(quantize: str | None, quantizer: str | None) -> dict[str, str]:
    """Return the accelerators that are known not to work with such a base, with the reasons."""
    if quantizer != "bitsandbytes":
        return {}
    reasons = {"compile": "bitsandbytes keeps a layer's scales outside its tensors"}
    if quantize == "int8":
        reasons["lanes"] = MIXES_ROWS_REASON
    return reasons


MIXES_ROWS_REASON = (
    "int8 by bitsandbytes looks for outliers over all rows of a batch, other lanes' too"
)


def keep_trainable(model: nn.Module) -> None:
    """Keep a quantised base trainable after an evaluation, and silence its package."""
    # "inputs will be cast to float16", for each layer and pass
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        # with AVX512, bitsandbytes repacks the weights in the first evaluation, after which the
        # layer has no gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # no Module


def is_packed(tensor: Tensor) -> bool:
    """Return whether a tensor holds quantised weights, which cannot be cast or trained."""
    return type(tensor).__name__ in _PACKED or is_traceable_wrapper_subclass(tensor)


def is_quantized(model: nn.Module) -> bool:
    """Return whether any of a model's weights are quantised."""
    return any(is_packed(p) for p in model.parameters())


def plain_parts(tensor: Tensor) -> Iterable[Tensor]:
    """Yield the plain tensors inside a tensor: itself, or the parts of a quantised one."""
    inside: Any = tensor.detach()
    wraps: bool = is_traceable_wrapper_subclass(inside)
    if not wraps:
        yield inside
        return
    for name in inside.__tensor_flatten__()[0]:
        yield from plain_parts(getattr(inside, name))


def mixes_rows(model: nn.Module) -> bool:
    """Return whether a row's result depends on the other rows of its batch.

    LLM.int8 keeps every column exact in which any row has an outlier.
    """
    states = (getattr(m, "state", None) for m in model.modules())
    return any(getattr(s, "threshold", 0.0) > 0 for s in states)
