"""Quantised bases: linear layers in 4 or 8 bits, as transformers makes them while it loads.

Used by ``assemble`` to load one, and by whatever must not take packed bytes for weights: the
optimizer's dtypes, the lanes, the methods that write into the base. The output layer, the task's
own, embeddings and norms stay as they are in every base.
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
"""Which packages make each kind; the first that is installed is `auto`'s."""
_PACKED = ("Params4bit", "Int8Params")
"""bitsandbytes' own parameters, by name: it is optional, and slow to import."""


def resolve_quantizer(quantize: str, wish: str) -> str:
    """Return the package that quantises; ``auto`` takes the first of its kind that is installed.

    Raises:
        EnvironmentProblem: ``quantizer-missing``.
    """
    known = QUANTIZERS[quantize] if wish == "auto" else (wish,)
    for package in known:
        if importlib.util.find_spec(package) is not None:
            return package
    raise EnvironmentProblem(
        "quantizer-missing",
        f'base.quantize = "{quantize}" needs {known[0]}, which is not installed.',
        f'`pip install "bakeoff[{known[0]}]"`, or leave base.quantize out.',
    )


def quantization_kwargs(
    quantize: str, quantizer: str, device: str, precision: str, heads: Sequence[str]
) -> dict[str, Any]:
    """Return what ``from_pretrained`` must be told; ``heads`` are the task's own output layers.

    nf4 as in QLoRA (arXiv 2305.14314): blocks of 64 weights, their scales quantised once more
    ("double"), products in the study's precision. int8 by bitsandbytes is LLM.int8 (arXiv
    2208.07339): activations are rounded too, but for outliers beyond 6.0. int8 by torchao rounds
    weights alone.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    spared = list(heads) or None  # None: transformers spares the output layer
    config: Any
    if quantizer == "torchao":
        # optional, and transformers imports it only here
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=spared)
        # its tensors multiply in the dtype that they stand for
        return {"quantization_config": config, "device_map": {"": device}, "dtype": compute}
    if quantize == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=spared,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    return {"quantization_config": config, "device_map": {"": device}}


def unsupported_accelerators(quantize: str | None, quantizer: str | None) -> dict[str, str]:
    """Return the accelerators that such a base cannot have, with the reasons: known, not tried."""
    if quantizer != "bitsandbytes":
        return {}
    found = {"compile": "bitsandbytes keeps a layer's scales outside its tensors"}
    if quantize == "int8":
        found["lanes"] = MIXES_ROWS_REASON
    return found


MIXES_ROWS_REASON = (
    "int8 by bitsandbytes looks for outliers over all rows of a batch, other lanes' too"
)


def keep_trainable(model: nn.Module) -> None:
    """Keep a quantised base trainable after it was evaluated, and its package quiet."""
    # "inputs will be cast to float16", once a layer and pass
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        # bitsandbytes repacks weights for AVX512 at the first evaluation, and such a layer has no
        # gradient any more; elsewhere it does not
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_packed(tensor: Tensor) -> bool:
    """Say whether a tensor holds quantised weights: no numbers to compute with, cast or train."""
    return type(tensor).__name__ in _PACKED or is_traceable_wrapper_subclass(tensor)


def is_quantized(model: nn.Module) -> bool:
    """Say whether any of a model's weights are quantised."""
    return any(is_packed(p) for p in model.parameters())


def plain_parts(tensor: Tensor) -> Iterable[Tensor]:
    """Yield the plain tensors that a tensor is made of: itself, or a packed one's bytes."""
    inside: Any = tensor.detach()
    wraps: bool = is_traceable_wrapper_subclass(inside)
    if not wraps:
        yield inside
        return
    for name in inside.__tensor_flatten__()[0]:
        yield from plain_parts(getattr(inside, name))


def mixes_rows(model: nn.Module) -> bool:
    """Say whether a row's result depends on the batch's other rows.

    LLM.int8 keeps those columns exact in which any row has an outlier.
    """
    states = (getattr(m, "state", None) for m in model.modules())
    return any(getattr(s, "threshold", 0.0) > 0 for s in states)
