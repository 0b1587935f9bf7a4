"""How a study is run: `[engine]` of a study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bakeoff.spec.part import Part

Switch = Literal["auto", "on", "off"]
SWITCHES = ("packing", "loss", "lean_inputs", "compile", "graphs", "checkpointing", "generation")


class EngineSpec(Part):
    """How it is run; changes speed, and numbers only within rounding."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` takes bf16 where the hardware computes in it."""
    executor: str = "process"
    """`process` (workers that stay warm) or `inline` (in this process: breakpoints work)."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Groups of trials that run side by side; on several GPUs the workers take them in turn."""
    patience: Annotated[float, Field(gt=0)] = 30
    """Minutes without a step after which a worker counts as hung; its work is begun again."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each worker; default: the physical cores divided by the workers."""
    lanes: Literal["auto", "off"] | Annotated[int, Field(ge=1)] = "auto"
    """Trials of a method that share one step: `auto` (as many as there are), a limit, or `off`."""
    packing: Switch = "auto"
    """Examples lie end to end through the layers; `auto` where it agrees with padded batches."""
    loss: Switch = "auto"
    """Cross-entropy in chunks, at supervised tokens only; `auto` where the head is frozen."""
    lean_inputs: Switch = "auto"
    """PEFT layers make no fp32 copy of their input; `auto` in bf16."""
    compile: Switch = "auto"
    """One compiled layer serves all; `auto` on CUDA, from 500 steps a trial on."""
    graphs: Switch = "auto"
    """A step is one CUDA graph; `auto` on CUDA."""
    generation: Switch = "auto"
    """Answers are generated in batches whose finished rows leave; `auto` where the tokens are those
    of plain `generate`; `off` is plain `generate`."""
    micro_tokens: Annotated[int, Field(ge=8)] | None = None
    """Most tokens of one forward and backward pass: a step is cut into several; default: what fits.
    One example is never cut."""
    checkpointing: Switch = "auto"
    """Layers are computed again in the backward pass: up to half more work, far less memory; `auto`
    where not even one example a pass fits without it."""
    evaluation_batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples in each evaluation batch; fast generation takes up to 256 on a GPU, if they fit."""

    @property
    def switches(self) -> dict[str, str | int | None]:
        """The accelerators by name, each `auto`, `on` or `off`, and the tokens of a pass."""
        named = {n: getattr(self, n) for n in SWITCHES}
        lanes = "off" if self.lanes == "off" else "auto"
        return {**named, "lanes": lanes, "micro_tokens": self.micro_tokens}

    @property
    def most_lanes(self) -> int | None:
        """The largest group of trials that share a step; None: no limit of the user's."""
        if isinstance(self.lanes, int):
            return self.lanes
        return 1 if self.lanes == "off" else None
