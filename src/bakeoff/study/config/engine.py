"""How a study is run: `[engine]` of a study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bakeoff.study.config.base import LARGEST, Count, SpecTable

Switch = Literal["auto", "on", "off"]
SWITCHES = ("packing", "loss", "lean_inputs", "compile", "graphs", "checkpointing", "generation")


class EngineSpec(SpecTable):
    """How it is run; changes speed, and numbers only within rounding."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` takes bf16 where the hardware computes in it."""
    executor: str = "process"
    """`process` (workers that stay warm), `inline` (in this process: breakpoints work) or `ray` (on
    the machines of a Ray cluster)."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Groups of trials that run side by side; on several GPUs the workers take them in turn; with
    `ray`, in all of the cluster."""
    patience: Annotated[float, Field(gt=0, le=1e6)] = 30
    """Minutes without a step after which a worker counts as hung; its work is begun again."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads of each worker; default: the physical cores divided by the workers, with `ray`
    one, for which it reserves as many CPUs."""
    gpus_per_segment: Annotated[float, Field(ge=0, le=1)] | None = None
    """With `ray`: the GPU of each group of trials, or the share of one (`0.5`: two groups on each);
    default: a whole one where the cluster has any."""
    segment_retries: Annotated[int, Field(ge=0, le=1024)] = 3
    """With `ray`: how often a group of trials whose node was lost is begun again elsewhere."""
    ray_address: str | None = None
    """The Ray cluster to join: `HOST:PORT`, or `auto` on one of its nodes; default: `RAY_ADDRESS`,
    else one of this machine alone, which ends with the run."""
    ray_files: Literal["shared", "sent"] = "shared"
    """`shared`: all nodes see the study folder; `sent`: data and states travel to the nodes and
    results back, and only the base must lie on each."""
    ray_unauthenticated: bool = False
    """Join a Ray cluster that asks for no token, on which whoever reaches it can run code."""
    lanes: Literal["auto", "off"] | Count = "auto"
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
    micro_tokens: Annotated[int, Field(ge=8, le=LARGEST)] | None = None
    """Most tokens of one forward and backward pass: a step is cut into several; default: what fits.
    One example is never cut."""
    checkpointing: Switch = "auto"
    """Layers are computed again in the backward pass: up to half more work, far less memory; `auto`
    where not even one example a pass fits without it."""
    evaluation_batch_size: Count = 64
    """Examples in each evaluation batch; fast generation takes up to 256 on a GPU, if they fit."""

    @model_validator(mode="after")
    def _ray_hands_out_gpus(self) -> EngineSpec:
        if self.executor == "ray" and self.device.startswith("cuda:"):
            raise ValueError(
                f"device = '{self.device}' with executor = 'ray': Ray gives each group of trials "
                "its GPU; write 'cuda'"
            )
        return self

    @property
    def requested_threads(self) -> int | None:
        """CPU threads of each worker; None: the cores are divided where the work is done."""
        return self.threads or (1 if self.executor == "ray" else None)

    @property
    def switches(self) -> dict[str, str | int | None]:
        """The accelerators by name, each `auto`, `on` or `off`, and the tokens of a pass."""
        named = {n: getattr(self, n) for n in SWITCHES}
        lanes = "off" if self.lanes == "off" else "auto"
        return {**named, "lanes": lanes, "micro_tokens": self.micro_tokens}

    @property
    def max_lanes(self) -> int | None:
        """The largest group of trials that share a step; None: no limit of the user's."""
        if isinstance(self.lanes, int):
            return self.lanes
        return 1 if self.lanes == "off" else None
