"""Describe the machine: device, precision, versions and matmul rates."""

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
from bakeoff.training.preflight.base_errors import load_error
from bakeoff.training.preflight.parameter_count import count_base
from bakeoff.training.preflight.row_lengths import count_row_lengths


def detect_machine(value: dict[str, Any]) -> dict[str, Any]:
    """Resolve device, precision, threads and quantizer; a worker's entry point.

    Returns them with the hardware's name and the versions of packages, or an ``error`` to raise.
    If ``value`` has a ``segment``, the token counts of its rows are added as ``row_lengths``; if it
    has a ``base``, that base's number of parameters as ``base_parameters``: one job for all,
    because each job before a study starts a process.
    """
    quantize, quantizer = value.get("quantize"), None
    try:
        device = resolve_device(value["device"])
        if quantize is not None:
            quantizer = quantization.resolve_quantizer(quantize, value["quantizer"])
    except BakeoffError as error:
        return {"error": error.to_json()}
    packages = PACKAGES if quantizer is None else (*PACKAGES, quantizer)
    threads = value["threads"] or max(1, _usable_cores() // value["workers"])
    counted = _count_lengths(value["segment"]) if "segment" in value else {}
    if counted.get("error") is not None:
        return counted
    if "base" in value:
        counted["base_parameters"] = count_base(value["base"])
    return {
        **counted,
        "device": device,
        "precision": resolve_precision(value["precision"], device),
        "threads": threads,
        "hardware": torch.cuda.get_device_name(device) if device != "cpu" else _cpu_name(),
        "quantizer": quantizer,
        "versions": installed_versions(packages),
    }


def _usable_cores() -> int:
    """Return the cores that this process may use, at most ``OMP_NUM_THREADS`` if that is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    stated = os.environ.get("OMP_NUM_THREADS", "").strip()
    return min(cores or 1, int(stated)) if stated.isdigit() and int(stated) > 0 else cores or 1


def _count_lengths(segment: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"row_lengths": count_row_lengths(segment)}
    except BakeoffError as error:
        return {"error": error.to_json()}
    except Exception as error:  # loaders raise many kinds for broken files
        return {"error": load_error(segment["base_path"], error).to_json()}


def measure_machine(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``detect_machine`` with measured matmul rates and the default accelerators.

    A worker's entry point. Rates are in GFLOPS.
    """
    machine = detect_machine(value)
    torch.set_num_threads(machine["threads"])
    rates = {
        "fp32": profiling.matmul_gflops(torch.float32, machine["device"]),
        "bf16": profiling.matmul_gflops(torch.bfloat16, machine["device"]),
    }
    switches = explain_defaults(machine["device"], machine["precision"])
    return {
        **machine,
        "matmul_gflops": rates,
        "engine": {name: e._asdict() for name, e in switches.items()},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
