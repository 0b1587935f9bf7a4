"""The engine's accelerators as switches: decided once a method, stored and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Switches:
    """What is on. Numbers change within rounding only: a probe compares with the plain path."""

    lanes: bool
    """Trials share one step; off: they take turns on the one base."""
    packing: bool
    """Examples lie end to end through the layers; off: padded batches."""
    loss: bool
    """Linear layer and cross-entropy in chunks, at supervised positions, no head gradient."""
    compile: bool
    """One compiled layer serves all layers."""
    graphs: bool
    """A whole step is one CUDA graph a shape."""
    lean_inputs: bool = False
    """PEFT layers take their input as it is, without PEFT's fp32 copy of it (bf16 alone)."""
    checkpointing: bool = False
    """A layer keeps its input alone, and is computed again in the backward pass."""
    micro_tokens: int | None = None
    """Most tokens of one forward and backward pass; None: whatever fits."""
    generation: bool = False
    """Answers are generated over slots; off: by plain ``generate``, batch by batch."""

    @classmethod
    def plain(cls) -> Switches:
        """Return everything off."""
        return cls(lanes=False, packing=False, loss=False, compile=False, graphs=False)

    @classmethod
    def best(cls, device: str, precision: str = "bf16", steps: int | None = None) -> Switches:
        """Return everything that pays on this device, for so many steps (None: very many)."""
        return cls(**{name: e.on for name, e in explain_defaults(device, precision, steps).items()})

    @classmethod
    def from_request(
        cls, wishes: Mapping[str, Any], device: str, precision: str, steps: int
    ) -> Switches:
        """Return the best with the user's ``on`` and ``off`` over it; ``auto`` leaves it be."""
        best = cls.best(device, precision, steps)
        own: dict[str, Any] = {k: v == "on" for k, v in wishes.items() if v in ("on", "off")}
        return replace(best, **own, micro_tokens=wishes.get("micro_tokens"))

    def conflicts(self) -> dict[str, str]:
        """Return the accelerators that cannot go with others that are on, with the reasons."""
        if self.micro_tokens is not None:
            return {"graphs": "micro_tokens cuts steps into passes of too many shapes to capture"}
        if self.checkpointing:
            return {"graphs": "checkpointing keeps the random state of each layer on the host"}
        return {}


class SwitchDefault(NamedTuple):
    """One switch at ``auto``: whether it is on, and why."""

    on: bool
    why: str


MIN_STEPS_TO_COMPILE = 500
"""Steps of a trial from which a compiled layer saves more than compiling it costs: about 10 s a
group of trials of a 135M base on an H100, against some 3 ms of a step and lane (ablation)."""


def explain_defaults(
    device: str, precision: str, steps: int | None = None
) -> dict[str, SwitchDefault]:
    """Say which switches ``auto`` turns on for a device and a number of steps, and why."""
    cuda = device.startswith("cuda")
    flash = cuda and precision == "bf16" and torch.cuda.get_device_capability(device) >= (8, 0)
    attention = "varlen flash attention" if flash else "softmax over each example"
    return {
        "lanes": SwitchDefault(True, "where the two-lane probe agrees with the trials alone"),
        "packing": SwitchDefault(True, f"{attention}; where it agrees with padded batches"),
        "loss": SwitchDefault(True, "where the output layer is frozen and linear"),
        "lean_inputs": SwitchDefault(
            precision == "bf16", "bf16: no fp32 copies" if precision == "bf16" else "fp32 anyway"
        ),
        "compile": _compile_default(cuda, steps),
        "graphs": SwitchDefault(cuda, "a step is one CUDA graph" if cuda else "needs CUDA"),
        "checkpointing": SwitchDefault(False, "where not even one example a pass fits without it"),
        "generation": SwitchDefault(True, "where it gives plain generate's tokens"),
    }


def _compile_default(cuda: bool, steps: int | None) -> SwitchDefault:
    if not cuda:
        return SwitchDefault(False, "a CPU gains less than compiling costs")
    if steps is not None and steps < MIN_STEPS_TO_COMPILE:
        return SwitchDefault(
            False, f"fewer than {MIN_STEPS_TO_COMPILE:,} steps gain less than it costs"
        )
    return SwitchDefault(
        True, f"one compiled layer for all, from {MIN_STEPS_TO_COMPILE:,} steps on"
    )
