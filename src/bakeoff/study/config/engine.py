"""Execution: `[engine]` of a study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bakeoff.study.config.base import LARGEST, Count, SpecTable

Switch = Literal["auto", "on", "off"]
SWITCHES = (
    "packing", "loss", "lean_inputs", "fused", "compile", "graphs", "checkpointing", "generation",
)  # fmt: skip


class EngineSpec(SpecTable):
    """How a study is run; changes speed, and numbers only within rounding."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 if the hardware supports it."""
    executor: str = "process"
    """`process` (persistent worker processes), `inline` (in this process, so breakpoints work) or
    `ray` (on the machines of a Ray cluster)."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Groups of trials that run in parallel. Workers are assigned to several GPUs in turn. With
    `ray`: in the whole cluster."""
    patience: Annotated[float, Field(gt=0, le=1e6)] = 30
    """Minutes without a step after which a worker counts as hung, and its work is restarted."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads of each worker; default: the usable cores (at most `OMP_NUM_THREADS`, if set)
    divided by the workers. With `ray` the default is 1, and as many CPUs are reserved."""
    gpus_per_segment: Annotated[float, Field(ge=0, le=1)] | None = None
    """With `ray`: the share of a GPU for each group of trials (`0.5`: two groups on each GPU);
    default: a whole GPU if the cluster has any."""
    segment_retries: Annotated[int, Field(ge=0, le=1024)] = 3
    """With `ray`: how often a group of trials is restarted after its node was lost."""
    ray_address: str | None = None
    """The Ray cluster to join: `HOST:PORT`, or `auto` on one of its nodes; default: `RAY_ADDRESS`,
    else a cluster on this machine, which ends with the run."""
    ray_files: Literal["shared", "sent"] = "shared"
    """`shared`: all nodes can access the study folder. `sent`: data and checkpoints are sent to the
    nodes and results back; only the base must exist on each."""
    ray_unauthenticated: bool = False
    """Join a Ray cluster without authentication; anyone with network access can run code on it."""
    lanes: Literal["auto", "off"] | Count = "auto"
    """Trials of a method that are batched into one step: `auto` (all), a limit, or `off`."""
    packing: Switch = "auto"
    """Pack examples without padding; `auto`: if the results agree with padded batches."""
    loss: Switch = "auto"
    """Chunked cross-entropy, for supervised tokens only; `auto`: if the head is frozen."""
    lean_inputs: Switch = "auto"
    """Avoid fp32 copies of the inputs of PEFT layers; `auto`: in bf16."""
    fused: Switch = "auto"
    """Compute the base's frozen RMS norms and rotary embeddings in fewer kernels; `auto`: on CUDA,
    without `compile`."""
    compile: Switch = "auto"
    """Compile one layer for all; `auto`: on CUDA, from 500 steps per trial."""
    graphs: Switch = "auto"
    """Capture each step as a CUDA graph; `auto`: on CUDA."""
    generation: Switch = "auto"
    """Generate in batches from which finished rows are removed; `auto`: if the tokens are those of
    plain `generate`; `off`: plain `generate`."""
    micro_tokens: Annotated[int, Field(ge=8, le=LARGEST)] | None = None
    """Maximum number of tokens in one forward and backward pass; larger steps take several passes.
    An example is never split. Default: what fits in memory."""
    checkpointing: Switch = "auto"
    """Recompute activations in the backward pass: up to 50 % more work, much less memory; `auto`:
    if not even one example fits without it."""
    evaluation_batch_size: Count = 64
    """Examples in an evaluation batch of all lanes; on a GPU of each lane, as far as memory allows,
    and fast generation uses up to 256 if they fit."""

    @model_validator(mode="after")
    def _check_ray_device(self) -> EngineSpec:
        if self.executor == "ray" and self.device.startswith("cuda:"):
            raise ValueError(
                f"device = '{self.device}' with executor = 'ray': Ray assigns the GPUs; "
                "write 'cuda'"
            )
        return self

    @property
    def requested_threads(self) -> int | None:
        """CPU threads of each worker; None: the worker's machine divides its cores."""
        return self.threads or (1 if self.executor == "ray" else None)

    @property
    def switches(self) -> dict[str, str | int | None]:
        """The accelerators by name, each `auto`, `on` or `off`, and the tokens per pass."""
        switches = {n: getattr(self, n) for n in SWITCHES}
        lanes = "off" if self.lanes == "off" else "auto"
        return {**switches, "lanes": lanes, "micro_tokens": self.micro_tokens}

    @property
    def max_lanes(self) -> int | None:
        """The largest group of trials that are batched into one step; None: no limit is set."""
        if isinstance(self.lanes, int):
            return self.lanes
        return 1 if self.lanes == "off" else None
