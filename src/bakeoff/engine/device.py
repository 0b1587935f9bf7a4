"""Device and precision of a study, memory errors, and where a model's tensors are placed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from bakeoff.core.errors import PreflightError
from bakeoff.engine.quantization import is_packed

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def resolve_device(requested: str) -> str:
    """Return the device to use; ``auto`` is CUDA if available.

    Raises:
        PreflightError: ``device-not-found``.
    """
    count = torch.cuda.device_count()
    if requested == "auto":
        return "cuda:0" if count else "cpu"
    if requested == "cuda":
        requested = "cuda:0"
    if requested == "cpu" or requested in {f"cuda:{i}" for i in range(count)}:
        return requested
    raise PreflightError(
        "device-not-found",
        f"There is no device '{requested}' ({count} CUDA devices found).",
        "engine.device = 'auto' or 'cpu'.",
    )


def resolve_precision(requested: str, device: str) -> str:
    """Return ``bf16`` or ``fp32``; ``auto`` is bf16 if the hardware computes in it.

    On a CPU without bf16 units autocast works, but is slower than fp32, so its flags are checked.
    """
    if requested != "auto":
        return requested
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, p, lambda: False)()) for p in probes)


def device_type(device: str) -> str:
    """Return ``cpu`` or ``cuda``, without an index."""
    return device.split(":", maxsplit=1)[0]


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context in which forward passes run."""
    if precision == "bf16":
        return torch.autocast(device_type(device), torch.bfloat16)
    return nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a GPU or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "out of memory" in text


def retry_with_half(work: Callable[[int], Result], rows: int, what: str) -> Result:
    """Return ``work(rows)``; when memory runs out, restart it with half the rows.

    ``what`` is computed in these rows, for the log.
    """
    while True:
        try:
            return work(rows)
        except (RuntimeError, MemoryError) as error:
            if rows <= 1 or not is_out_of_memory(error):
                raise
        free_memory()  # outside the handler: the error still referenced tensors
        rows //= 2
        log.info("out of memory: %s in batches of %d rows", what, rows)


def is_device_lost(error: BaseException) -> bool:
    """Return whether an error leaves this process without a usable GPU.

    A failed assertion in a kernel, an illegal address or an ECC error breaks the whole CUDA
    context; only a new process gets a new one.
    """
    if is_out_of_memory(error):
        return False
    lost = getattr(torch, "AcceleratorError", None)
    return (lost is not None and isinstance(error, lost)) or "CUDA error:" in str(error)


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next step (glibc only; otherwise do nothing).

    By default it returns large blocks to the system at once, and every step on a CPU pays for the
    same pages again: a tenth of a step with lanes (measured). ``profiling.release_memory`` still
    returns them.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT)
            libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Values of glibc's malloc.h."""
_LARGEST_INT = 2**31 - 1


def free_memory() -> None:
    """Return cached memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def move_to_device(model: nn.Module, device: str) -> nn.Module:
    """Move a model to its device, including tensors in plain attributes and dictionaries.

    ``Module.to`` does not see those. PEFT keeps the token ids of prompts and AdaMSS's indices
    there and copies them in each forward pass, which costs time and cannot be captured in a CUDA
    graph.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name.startswith("_"):  # parameters, buffers, modules: ``Module.to`` moves them
                continue
            if isinstance(value, torch.Tensor):
                setattr(module, name, value.to(device))
            elif isinstance(value, dict):
                for key, inner in value.items():
                    if isinstance(inner, torch.Tensor):
                        value[key] = inner.to(device)
    if not any(map(is_packed, model.parameters())):
        return model.to(device)
    for module in model.modules():
        _move_unquantized_tensors(module, device)
    return model


def _move_unquantized_tensors(module: nn.Module, device: str) -> None:
    """Move a module's tensors except quantised ones, which are on the device since loading."""
    for parameter in module._parameters.values():
        if parameter is not None and not is_packed(parameter):
            parameter.data = parameter.data.to(device)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device)


def set_dtypes(model: nn.Module, precision: str) -> None:
    """Cast frozen floating-point tensors to the compute dtype and trained ones to fp32.

    The optimizer then always works on fp32 master weights, whatever the method, and autocast has
    no frozen weight to convert in each step. A module's vectors share a dtype: layer norm on a CPU
    needs its weight and bias in one dtype, even if only the bias is trained.
    """
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    master = {id(p) for p in model.parameters() if p.requires_grad}
    for module in model.modules():
        vectors = [p for p in module.parameters(recurse=False) if p.ndim == 1]
        if any(id(p) in master for p in vectors):
            master |= {id(p) for p in vectors}
    for parameter in model.parameters():
        if parameter.is_floating_point() and not is_packed(parameter):
            parameter.data = parameter.data.to(torch.float32 if id(parameter) in master else frozen)


def disable_input_casting(model: nn.Module) -> None:
    """Let PEFT layers use their input without casting it.

    PEFT casts it to the adapter's dtype, fp32, and autocast casts it back: the copy is saved for
    the backward pass and dominates training memory. The adapters stay in fp32.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
