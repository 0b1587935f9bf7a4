"""A whole training step as one CUDA graph per shape: forward, backward, clipping and optimizer.

A step's tensors are copied into the static inputs of the graph, which is then replayed.

Tensor axes: K = lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bakeoff.engine.batching import StepBatch

WARM_UP = 2
"""Runs before a capture: kernels, compiled layers and workspaces must exist by then."""


class _CapturedStep(NamedTuple):
    """A captured graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    losses: Tensor


def abort_capture(device: str) -> None:
    """Reset the random generator of a device after a capture that failed.

    PyTorch leaves the generator in capture mode, and every later draw of the process raises
    "Offset increment outside graph capture encountered unexpectedly".
    """
    fresh = torch.Generator(device)
    fresh.manual_seed(0)
    default = torch.cuda.default_generators[torch.device(device).index or 0]
    default.graphsafe_set_state(fresh.graphsafe_get_state())


class StepGraphs:
    """Captures and replays ``compute``, one graph per batch shape.

    ``warm_up`` is the part of ``compute`` that leaves no trace: it must change no parameter.
    """

    def __init__(
        self, compute: Callable[[StepBatch], Tensor], warm_up: Callable[[StepBatch], object]
    ) -> None:
        self.compute = compute
        self.warm_up = warm_up
        self._captured: dict[Any, _CapturedStep] = {}
        self._pool: Any = None
        self._warm_up_stream: Any = None

    def __call__(self, batch: StepBatch, device: str) -> Tensor:
        """Run one step on a batch in pinned memory; return the losses ``[K]``.

        The result is the graph's own output tensor, which the next replay overwrites.
        """
        leaves, tree = pytree.tree_flatten(batch)
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        # Only tensors are part of the key: other leaves, such as the lengths of the rows, are
        # read by the host alone, and the graph depends on their number (in ``tree``) at most.
        shape = (str(tree), tuple((t.shape, t.dtype) for t in tensors))
        if shape not in self._captured:
            self._captured[shape] = self._capture(leaves, tree, device)
        step = self._captured[shape]
        # in place: the graph replays kernels on fixed addresses
        for static, new in zip(step.inputs, tensors, strict=True):
            static.copy_(new, non_blocking=True)
        step.graph.replay()
        return step.losses

    def _capture(self, leaves: list[Any], tree: Any, device: str) -> _CapturedStep:
        """Warm up and capture one step; the caller replays it, so no step is taken here."""
        placed = [t.to(device) if isinstance(t, Tensor) else t for t in leaves]
        batch: StepBatch = pytree.tree_unflatten(placed, tree)
        # on a side stream, as PyTorch requires: lazy initialisation on the default stream would
        # otherwise become part of the capture. Without the optimizer, no parameter changes.
        # One stream for all captures: cuBLAS keeps a workspace for each, 32 MiB on an H200.
        if self._warm_up_stream is None:
            self._warm_up_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # no types
        side_stream = self._warm_up_stream
        side_stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP):
                self.warm_up(batch)
        torch.cuda.current_stream(device).wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                losses = self.compute(batch)
        except Exception:
            abort_capture(device)
            raise
        # one memory pool for all graphs: they never run at the same time
        self._pool = graph.pool()
        return _CapturedStep(graph, [t for t in placed if isinstance(t, Tensor)], losses)
