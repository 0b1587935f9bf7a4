"""The accelerators of the engine as switches, decided once per method and recorded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from bakeoff.core.errors import FAULT, first_line
from bakeoff.engine.device import is_out_of_memory

log = logging.getLogger(__name__)

STRICT_VARIABLE = "BAKEOFF_STRICT"
"""Environment variable: if set, an accelerator that fails unexpectedly is an error. For tests."""
_VMAP_LIMITS = {
    "data-dependent control flow": "its code branches on the values of tensors",
    "calling .item()": "its code reads the values of tensors on the host",
    "Batching rule not implemented": "it uses an operation without a rule for batches",
    "vmap: inplace arithmetic": "it writes to a tensor that all trials share",
    "randomness": "it draws random numbers in a way that batches cannot divide",
}
"""Parts of the errors of ``torch.func.vmap`` on code that it cannot batch, and what they mean."""


class Unsupported(Exception):
    """An accelerator does not work with a model or method; the message says why, for people."""


def explain_failure(error: Exception) -> str:
    """Return why an accelerator is off on which this error was raised.

    Known limits are sentences. Any other error is a fault of bakeoff's: the reason says so, and the
    traceback is logged.

    Raises:
        Exception: the error itself, if it is a fault and ``BAKEOFF_STRICT`` is set.
    """
    for cause in _causes(error):
        known = _known_limit(cause)
        if known is not None:
            return known
    if os.environ.get(STRICT_VARIABLE):
        raise error
    log.error("an accelerator failed, please report this", exc_info=error)
    return f"{FAULT}, please report it with the file in logs/ ({first_line(error)})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, compilers wrap errors of the code."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _known_limit(error: BaseException) -> str | None:
    """Return the sentence for an error that is a known limit, None for any other."""
    if isinstance(error, Unsupported):
        return str(error)
    if is_out_of_memory(error):
        return "memory ran out, even with one row in a pass"
    text = str(error)
    if "vmap" in text:
        limits = (why for part, why in _VMAP_LIMITS.items() if part in text)
        why = next(limits, None)
        return None if why is None else f"{why}, which trials in lanes cannot"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"PyTorch cannot compile its layers here ({first_line(error)})"
    if "stream is capturing" in text or "graph capture" in text:
        return "its step needs the host, so it cannot be captured as a CUDA graph"
    return None


@dataclass(frozen=True)
class Switches:
    """Which accelerators are on.

    They change numbers within rounding only: a probe compares each with the unaccelerated path.
    """

    lanes: bool
    """Trials share a training step; off: they run one after another on the same base."""
    packing: bool
    """Examples are concatenated inside the layers; off: padded batches."""
    loss: bool
    """Chunked linear layer and cross-entropy, without a gradient of the output layer."""
    compile: bool
    """One compiled layer serves all layers."""
    graphs: bool
    """Each step shape is captured as one CUDA graph."""
    lean_inputs: bool = False
    """PEFT layers use their input without PEFT's fp32 copy of it (bf16 only)."""
    checkpointing: bool = False
    """A layer saves only its input and is recomputed in the backward pass."""
    micro_tokens: int | None = None
    """Maximum number of tokens in a forward and backward pass; None: as many as fit."""
    generation: bool = False
    """Completions are generated with KV slots; off: by ``generate``, batch by batch."""
    lane_generation: bool = False
    """Trials share the steps of fast generation; off: one trial after another."""
    fused: bool = False
    """Frozen RMS norms and rotary embeddings of the base take fewer kernels."""

    @classmethod
    def all_off(cls) -> Switches:
        """Return the switches with everything off."""
        return cls(lanes=False, packing=False, loss=False, compile=False, graphs=False)

    @classmethod
    def best(cls, device: str, precision: str = "bf16", steps: int | None = None) -> Switches:
        """Return the defaults for a device and a number of steps per trial (None: very many)."""
        return cls(**{name: e.on for name, e in explain_defaults(device, precision, steps).items()})

    @classmethod
    def from_request(
        cls, requested: Mapping[str, Any], device: str, precision: str, steps: int
    ) -> Switches:
        """Return the defaults, overridden by the user's ``on`` and ``off``."""
        best = cls.best(device, precision, steps)
        forced: dict[str, Any] = {k: v == "on" for k, v in requested.items() if v in ("on", "off")}
        return replace(best, **forced, micro_tokens=requested.get("micro_tokens"))

    def conflicts(self) -> dict[str, str]:
        """Return the accelerators that conflict with others that are on, with the reasons."""
        why = {}
        if self.compile:
            why["fused"] = "the compiler fuses these layers itself"
        if self.micro_tokens is not None:
            why["graphs"] = "micro_tokens cuts steps into passes of too many shapes to capture"
        elif self.checkpointing:
            why["graphs"] = "checkpointing keeps the random state of each layer on the host"
        return why


class SwitchDefault(NamedTuple):
    """Value of one switch at ``auto``, and the reason."""

    on: bool
    why: str


MIN_STEPS_TO_COMPILE = 500
"""Steps of a trial from which a compiled layer saves more than its compilation costs: about 10 s
per group of trials of a 135M base on an H100, against some 3 ms per step and lane (ablation)."""


def explain_defaults(
    device: str, precision: str, steps: int | None = None
) -> dict[str, SwitchDefault]:
    """Return what ``auto`` chooses for each switch on a device and for a number of steps."""
    cuda = device.startswith("cuda")
    flash = cuda and precision == "bf16" and torch.cuda.get_device_capability(device) >= (8, 0)
    attention = "varlen flash attention" if flash else "softmax over each example"
    return {
        "lanes": SwitchDefault(True, "if two lanes give the same numbers as separate trials"),
        "packing": SwitchDefault(True, f"{attention}; if it agrees with padded batches"),
        "loss": SwitchDefault(True, "if the output layer is frozen and linear"),
        "lean_inputs": SwitchDefault(
            precision == "bf16",
            "bf16: no fp32 copies" if precision == "bf16" else "fp32: nothing to cast",
        ),
        "fused": SwitchDefault(
            cuda, "if they give what the base's code gives" if cuda else "a CPU gains nothing"
        ),
        "compile": _compile_default(cuda, steps),
        "graphs": SwitchDefault(cuda, "a step is one CUDA graph" if cuda else "needs CUDA"),
        "checkpointing": SwitchDefault(False, "only if a single example does not fit without it"),
        "generation": SwitchDefault(True, "if it generates the same tokens as `generate`"),
    }


def _compile_default(cuda: bool, steps: int | None) -> SwitchDefault:
    """Return what ``auto`` chooses for ``compile``."""
    if not cuda:
        return SwitchDefault(False, "a CPU saves less than compilation costs")
    if steps is not None and steps < MIN_STEPS_TO_COMPILE:
        return SwitchDefault(
            False, f"fewer than {MIN_STEPS_TO_COMPILE:,} steps save less than compilation costs"
        )
    return SwitchDefault(
        True, f"one compiled layer for all layers, from {MIN_STEPS_TO_COMPILE:,} steps on"
    )
