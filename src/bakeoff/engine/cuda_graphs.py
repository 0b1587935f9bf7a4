"""A whole step as one CUDA graph a shape: forward, backward, clipping and optimizer, no launches.

Used by ``loop``. The step's tensors are copied into the graph's own buffers, then it is replayed.
Before a capture the step runs a few times without its optimizer, on a side stream, so that
kernels, compiled layers and workspaces are there; these runs change no parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bakeoff.engine.batching import StepBatch

WARM_UP = 2


class _CapturedStep(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    losses: Tensor


def abort_capture(device: str) -> None:
    """Take the random generator back from a capture that failed.

    PyTorch leaves it waiting for the capture's end, and every later draw of the process raises
    "Offset increment outside graph capture encountered unexpectedly".
    """
    fresh = torch.Generator(device)
    fresh.manual_seed(0)
    default = torch.cuda.default_generators[torch.device(device).index or 0]
    default.graphsafe_set_state(fresh.graphsafe_get_state())


class StepGraphs:
    """Captures and replays ``compute``; ``warm_up`` is the part of it that may run beforehand."""

    def __init__(
        self, compute: Callable[[StepBatch], Tensor], warm_up: Callable[[StepBatch], object]
    ) -> None:
        self.compute = compute
        self.warm_up = warm_up
        self._known: dict[Any, _CapturedStep] = {}
        self._pool: Any = None

    def __call__(self, batch: StepBatch, device: str) -> Tensor:
        """Run one step on a batch that lies in pinned memory; return the losses ``[K]``."""
        leaves, tree = pytree.tree_flatten(batch)
        given = [t for t in leaves if isinstance(t, Tensor)]
        # the lengths of the rows are for the host alone: only their number is in the graph
        shape = (str(tree), tuple((t.shape, t.dtype) for t in given))
        if shape not in self._known:
            self._known[shape] = self._capture(leaves, tree, device)
        known = self._known[shape]
        for static, new in zip(known.inputs, given, strict=True):
            static.copy_(new, non_blocking=True)
        known.graph.replay()
        return known.losses

    def _capture(self, leaves: list[Any], tree: Any, device: str) -> _CapturedStep:
        placed = [t.to(device) if isinstance(t, Tensor) else t for t in leaves]
        batch: StepBatch = pytree.tree_unflatten(placed, tree)
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.warm_up(batch)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                losses = self.compute(batch)
        except Exception:
            abort_capture(device)
            raise
        self._pool = graph.pool()
        return _CapturedStep(graph, [t for t in placed if isinstance(t, Tensor)], losses)
