"""The training loop: K lanes per step, method-agnostic, without host synchronisation in a step.

Losses stay on the device until a reading point. The optimizer freezes a lane that diverges at
once; the host learns of it at the next reading.

Tensor axes: K = lanes, B = rows of one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bakeoff.engine.batching import Pass, StepBatch
from bakeoff.engine.cuda_graphs import StepGraphs
from bakeoff.engine.device import autocast, free_memory, is_out_of_memory
from bakeoff.engine.heartbeat import beat, stop_requested
from bakeoff.engine.lanes.lanes import Lanes, Precondition
from bakeoff.engine.lanes.parameter_stack import ParameterStack
from bakeoff.engine.optim import LaneAdamW, LaneRecipe, learning_rate_factor
from bakeoff.engine.packing.attention import use_layout

MAX_LOSS = 1e4
"""A finite loss above this counts as diverged: far above ln(vocabulary) of any model."""


@dataclass(frozen=True)
class Recipe:
    """Optimisation settings shared by all trials."""

    steps: int
    warmup: float
    decay: float
    weight_decay: float
    clip: float
    device: str
    precision: str
    graphs: bool = False


class LossReading(NamedTuple):
    """Mean training loss of each lane since the last reading, after ``step`` steps.

    ``diverged`` holds the step (from 1) at which a lane diverged, None for the others.
    """

    step: int
    train_losses: tuple[float, ...]
    diverged: tuple[int | None, ...]


class Pause(NamedTuple):
    """State of a training run that stopped on request, after ``step`` steps.

    ``losses`` ``[n, K]`` holds the training losses since the last reading; ``diverged`` is as in
    ``LossReading``.
    """

    step: int
    losses: Tensor
    diverged: tuple[int | None, ...]


class LossFunction(Protocol):
    """Function from (model, batch) to each item's summed loss and number of supervised units."""

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return ``[K * B]`` sums and counts."""
        ...


class StepHooks(NamedTuple):
    """A method's own computations in a training step; None where it has none.

    ``penalty`` returns a term to add to a lane's loss, ``precondition`` maps a lane's values and
    clipped gradients to new gradients. Between the optimizer's step and the next forward pass
    ``after_step`` is called with each lane's model, the step and the lane, ``after_lanes_step``
    once with the tensors of all lanes and the step.
    """

    penalty: Callable[[nn.Module], Tensor | None] | None = None
    precondition: Precondition | None = None
    after_step: Callable[[nn.Module, int, int], None] | None = None
    after_lanes_step: Callable[[ParameterStack, int], None] | None = None


class Stepper:
    """Takes optimizer steps for all lanes; ``losses`` returns the loss of each item."""

    def __init__(
        self,
        lanes: Lanes,
        rates: Sequence[tuple[float, ...]],
        recipe: Recipe,
        losses: LossFunction,
        extras: StepHooks | None = None,
    ) -> None:
        self.lanes = lanes
        self.recipe = recipe
        self.losses = losses
        extras = extras or StepHooks()
        self.penalty, self.precondition = extras.penalty, extras.precondition
        self.after_step, self.after_lanes_step = extras.after_step, extras.after_lanes_step
        recipes = [LaneRecipe(r, recipe.weight_decay, recipe.clip) for r in rates]
        self.optimizer = LaneAdamW(lanes.stack, recipes, MAX_LOSS)
        self._factor = torch.zeros((), device=lanes.stack.values.device)
        self._graphs = StepGraphs(self.compute, self.forward_backward) if recipe.graphs else None
        lanes.random.captured = recipe.graphs

    def step(self, index: int, batch: StepBatch, capture: bool = True) -> Tensor:
        """Take step ``index`` (from 0); return the lanes' losses ``[K]``, still on the device.

        Without ``capture`` no CUDA graph is captured or replayed.
        """
        r = self.recipe
        self._factor.fill_(learning_rate_factor(index, r.steps, r.warmup, r.decay))
        self.lanes.random.begin_step(index)
        if self._graphs is not None and capture:
            losses = self._graphs(batch, r.device)
        else:
            losses = self.compute(batch.to(r.device))
        self._run_after_step(index)
        return losses

    def compute(self, batch: StepBatch) -> Tensor:
        """Run the part of a step that a CUDA graph can capture."""
        self.lanes.stack.gradients.zero_()
        losses = self.forward_backward(batch)
        self.optimizer.clip_and_mask(losses)
        if self.precondition is not None:
            self.lanes.precondition(self.precondition)
        self.optimizer.step(self._factor)
        return losses

    def forward_backward(self, batch: StepBatch) -> Tensor:
        """Add each lane's gradients to the stack; return the losses ``[K]``."""
        losses, so_far = [], torch.zeros(2, device=self._factor.device)
        for one in batch.passes:
            self.lanes.run_lanes(one.first, one.width, one.batch.rows // one.width)
            self.lanes.random.part = one.part
            self.lanes.random.seed_global_generator(one.first)
            if one.part is None:
                losses.append(self._full_pass(one))
                continue
            so_far = so_far + self._partial_pass(one)
            if one.part.last:
                losses.append(self._finish_parts(one.first, so_far))
                so_far = torch.zeros_like(so_far)
        return torch.cat(losses)

    def _forward(self, one: Pass) -> tuple[Tensor, Tensor]:
        """Return each lane's summed loss and supervised units in this pass, ``[width]`` each."""
        r = self.recipe
        with autocast(r.device, r.precision), use_layout(one.layout, self.lanes.random):
            sums, counts = self.losses(self.lanes.model, one.batch)
        return sums.view(one.width, -1).sum(1), counts.view(one.width, -1).sum(1)

    def _full_pass(self, one: Pass) -> Tensor:
        """Add the gradients of lanes whose step is this pass; return their losses ``[width]``."""
        sums, counts = self._forward(one)
        losses = sums / counts
        extra = self._penalties(one.width)
        total = losses if extra is None else losses + extra
        self.lanes.backward(total.sum())
        return losses.detach()

    def _partial_pass(self, one: Pass) -> Tensor:
        """Add the gradient of one lane's summed loss in this pass; return the sum and its units."""
        sums, counts = self._forward(one)
        self.lanes.backward(sums.sum())
        return torch.cat([sums.detach().float(), counts.float()])

    @torch.no_grad()
    def _finish_parts(self, lane: int, so_far: Tensor) -> Tensor:
        """Turn a lane's summed gradients into those of its mean loss; return the loss ``[1]``."""
        total, count = so_far[:1], so_far[1:]
        self.lanes.stack.gradients[lane].div_(count)
        with torch.enable_grad():
            extra = self._penalties(1)
            if extra is not None:
                self.lanes.backward(extra.sum())
        return total / count

    def _penalties(self, lanes: int) -> Tensor | None:
        """Return the method's loss term of each active lane, ``[lanes]``; None without one."""
        if self.penalty is None:
            return None
        if lanes > 1:
            return self.lanes.map_lanes(self.penalty)
        return self.penalty(self.lanes.model)

    def values(self, lane: int) -> dict[str, Tensor]:
        """Return a copy of a lane's trained values, without its optimizer state."""
        return {"values": self.lanes.stack.values[lane].detach().clone()}

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return copies of a lane's trained values and of its optimizer state."""
        return {**self.values(lane), **self.optimizer.state(lane)}

    def restore(self, lane: int, saved: Mapping[str, Tensor], steps_taken: int) -> None:
        """Restore a lane after ``steps_taken`` steps: its ``state``, or only its ``values``."""
        with torch.no_grad():
            self.lanes.stack.values[lane].copy_(saved["values"])
        if len(saved) > 1:
            self.optimizer.restore(lane, saved, steps_taken)

    def never_updated(self, lane: int) -> bool:
        """Return whether neither a gradient nor the method itself has ever changed a lane."""
        own = self.after_step is not None or self.after_lanes_step is not None
        return not own and self.optimizer.never_updated(lane)

    def discard_graphs(self, for_good: bool) -> None:
        """Free captured graphs and their memory; ``for_good`` also stops capturing new ones."""
        if self._graphs is not None:
            self._graphs = None if for_good else StepGraphs(self.compute, self.forward_backward)
            self.lanes.random.captured = not for_good

    def _run_after_step(self, index: int) -> None:
        if self.after_lanes_step is not None:
            self.after_lanes_step(self.lanes.stack, index)
        if self.after_step is None:
            return
        for lane in range(len(self.lanes)):
            self.lanes.run_single(lane)
            self.after_step(self.lanes.model, index, lane)


def train(
    stepper: Stepper,
    batches: Iterator[StepBatch],
    span: tuple[int, int],
    readings: Sequence[int],
    on_reading: Callable[[LossReading], None],
    shrink_batch: Callable[[], StepBatch | None] = lambda: None,
    pending_losses: Sequence[Tensor] = (),
) -> Pause | None:
    """Train over the steps of ``span``; read the losses back after each step in ``readings``.

    ``shrink_batch`` returns the current step in smaller passes when memory runs out, None if it
    cannot be made smaller. ``pending_losses`` are the losses ``[K]`` of the steps before ``span``
    since the last reading. Training ends early when every lane has diverged, or with a pause on
    request.
    """
    stepper.lanes.model.train()
    pending: list[Tensor] = list(pending_losses)
    start, stop = span
    for index in range(start, stop):
        # clone: a CUDA graph overwrites its losses in the next step
        pending.append(step_with_retry(stepper, index, next(batches), shrink_batch).clone())
        beat()
        if index + 1 in readings:
            means = torch.stack(pending).float().mean(0).tolist()
            diverged = _divergence_steps(stepper)
            pending.clear()
            on_reading(LossReading(index + 1, tuple(means), diverged))
            if all(diverged):
                return None
            stepper.lanes.model.train()
        if stop_requested() and index + 1 < stop:
            empty = stepper.lanes.stack.values.new_empty(0, len(stepper.lanes))
            losses = torch.stack(pending) if pending else empty
            return Pause(index + 1, losses, _divergence_steps(stepper))
    return None


def _divergence_steps(stepper: Stepper) -> tuple[int | None, ...]:
    """Return the step at which each lane diverged, None where it did not."""
    return tuple(at or None for at in stepper.optimizer.diverged_at.tolist())


def step_with_retry(
    stepper: Stepper, index: int, batch: StepBatch, shrink_batch: Callable[[], StepBatch | None]
) -> Tensor:
    """Take a step; where memory runs out, take it again in smaller passes.

    No lane loses its work: memory runs out in a forward or backward pass, before the optimizer
    has changed a lane.
    """
    while True:
        try:
            return stepper.step(index, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            smaller = shrink_batch()
            if smaller is None:
                raise
            # a step of one lane in parts has a shape for each way to split it: too many to capture
            stepper.discard_graphs(for_good=max(batch.widths) == 1)
            batch = smaller
        free_memory()  # outside the handler: the error still referenced the failed step's tensors


def reading_steps(steps: int, count: int) -> tuple[int, ...]:
    """Return ``count`` steps at which to read losses: evenly spaced, the last one at the end."""
    return tuple(sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)}))
