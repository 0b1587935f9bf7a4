"""Time and memory of training steps, as the cost probe measures them.

On CUDA the peak is ``max_memory_allocated`` (the allocator's reserve is not caused by the method).
On a CPU it is the peak resident memory (VmHWM, reset through ``clear_refs``, see proc(5)) above
that of the process with its base loaded.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

WARM_UP_STEPS = 3
TIMED_STEPS = 20
FEW_TIMED_STEPS = 5
"""Timed steps of which a median is taken where all ``TIMED_STEPS`` would take too long."""
MOST_SECONDS = 5.0
"""Seconds of steps after which no more than ``FEW_TIMED_STEPS`` are timed."""


class StepCost(NamedTuple):
    """Median wall time of a step and the peak memory over all measured steps."""

    milliseconds: float
    peak_bytes: int | None
    steps: int


def release_memory() -> None:
    """Return freed memory to the system, so that the next measurement counts memory in use only.

    cuBLAS keeps a workspace for each stream that was ever used, 32 MiB on an H200. No captured
    graph may be in use.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's has no types
        torch._C._cuda_clearCublasWorkspaces()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_bytes(device: str) -> int | None:
    """Return the memory available now, on the device or (CPU) the host; None: unknown."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return _read_kilobytes(Path("/proc/meminfo"), "MemAvailable:")


def resident_bytes() -> int | None:
    """Return the resident memory of this process, None without /proc."""
    return _status_bytes("VmRSS:")


def bytes_in_use(device: str) -> int | None:
    """Return the memory in use now: allocated on CUDA, resident on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated(device))
    return resident_bytes()


def reset_peak(device: str) -> None:
    """Reset the peak to the memory in use now."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")


def peak_bytes(device: str) -> int | None:
    """Return the peak since ``reset_peak``: allocated on CUDA, resident on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return _status_bytes("VmHWM:")


def measure_steps(step: Callable[[int], object], device: str) -> StepCost:
    """Run warm-up and timed steps; the device is synchronised around each of them.

    ``TIMED_STEPS`` are timed, of slow steps fewer.
    """
    reset_peak(device)
    seconds = []
    for index in range(WARM_UP_STEPS + TIMED_STEPS):
        _synchronize(device)
        started = time.perf_counter()
        step(index)
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
        if len(seconds) >= WARM_UP_STEPS + FEW_TIMED_STEPS and sum(seconds) > MOST_SECONDS:
            break
    timed = seconds[WARM_UP_STEPS:]
    return StepCost(1000 * statistics.median(timed), peak_bytes(device), len(timed))


def matmul_gflops(dtype: torch.dtype, device: str) -> float:
    """Return the speed of a square matrix product in GFLOP/s, the median of several runs."""
    size = 8192 if device.startswith("cuda") else 1024
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    cost = measure_steps(lambda _: a @ b, device)
    return 2 * size**3 / cost.milliseconds / 1e6


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int | None:
    return _read_kilobytes(Path("/proc/self/status"), key)


def _read_kilobytes(table: Path, key: str) -> int | None:
    if not table.exists():
        return None
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None
