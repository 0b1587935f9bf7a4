"""What this machine is: device, versions, matmul rates."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from bakeoff.core.errors import BakeoffError
from bakeoff.core.versions import PACKAGES, installed_versions
from bakeoff.engine import profiling, quantization
from bakeoff.engine.accelerators import explain_defaults
from bakeoff.engine.device import resolve_device, resolve_precision


def detect_machine(value: dict[str, Any]) -> dict[str, Any]:
    """Resolve device, precision, threads and ``quantizer``; return them, versions and hardware."""
    quantize, quantizer = value.get("quantize"), None
    try:
        device = resolve_device(value["device"])
        if quantize is not None:
            quantizer = quantization.resolve_quantizer(quantize, value["quantizer"])
    except BakeoffError as error:
        return {"error": error.to_json()}
    packages = PACKAGES if quantizer is None else (*PACKAGES, quantizer)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = value["threads"] or max(1, (cores or 1) // value["workers"])
    return {
        "device": device,
        "precision": resolve_precision(value["precision"], device),
        "threads": threads,
        "hardware": torch.cuda.get_device_name(device) if device != "cpu" else _cpu_name(),
        "quantizer": quantizer,
        "versions": installed_versions(packages),
    }


def measure_machine(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``machine`` with each precision's measured matmul rate and the engine's switches."""
    found = detect_machine(value)
    torch.set_num_threads(found["threads"])
    rates = {
        "fp32": profiling.matmul_gflops(torch.float32, found["device"]),
        "bf16": profiling.matmul_gflops(torch.bfloat16, found["device"]),
    }
    switches = explain_defaults(found["device"], found["precision"])
    return {
        **found,
        "matmul_gflops": rates,
        "engine": {name: e._asdict() for name, e in switches.items()},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
