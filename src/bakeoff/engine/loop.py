"""The training loop: hand-written, one trial, no method named, nothing read back inside a step.

Called by ``segment`` and by the cost probe with closures for the loss and the penalty. Losses stay
on the device until a reading point; divergence is found there and dated to its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.engine.device import autocast
from bakeoff.engine.optim import Group, adamw, schedule

MAX_LOSS = 1e4
"""A finite loss above this counts as diverged: far above ln(vocabulary) of any model."""


@dataclass(frozen=True)
class Recipe:
    """How to optimise; equal for every trial."""

    steps: int
    warmup: float
    decay: float
    weight_decay: float
    clip: float
    device: str
    precision: str


class Reading(NamedTuple):
    """Mean training loss since the last reading, taken after ``step`` steps."""

    step: int
    train_loss: float


class Diverged(Exception):
    """The loss was not finite, or absurd, at ``step`` (counted from 1)."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the training loss was {loss:.4g} at step {step}")
        self.step = step


class Stepper:
    """Takes optimizer steps on one model.

    ``loss`` maps a batch to a scalar; ``penalty`` gives a term to add to it or None;
    ``after_step`` is called between the optimizer's step and the next forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        recipe: Recipe,
        loss: Callable[[object], Tensor],
        penalty: Callable[[], Tensor | None],
        after_step: Callable[[int], None],
    ) -> None:
        self.model = model
        self.parameters = [p for g in groups for p in g.parameters]
        self.recipe = recipe
        self.loss = loss
        self.penalty = penalty
        self.after_step = after_step
        self.optimizer = adamw(groups, recipe.weight_decay)

    def step(self, index: int, batch: object) -> Tensor:
        """Take step ``index`` (from 0) and return its loss, still on the device."""
        recipe = self.recipe
        factor = schedule(index, recipe.steps, recipe.warmup, recipe.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        with autocast(recipe.device, recipe.precision):
            loss = self.loss(batch)
        penalty = self.penalty()
        total = loss if penalty is None else loss + penalty
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.after_step(index)
        return loss.detach()


def train(
    stepper: Stepper,
    batches: Iterator[object],
    start: int,
    stop: int,
    readings: Sequence[int],
    on_reading: Callable[[Reading], None],
) -> None:
    """Train from step ``start`` to ``stop``; after each step in ``readings`` read the losses back.

    Raises:
        Diverged: a loss was not finite or above ``MAX_LOSS``; found at the next reading.
    """
    stepper.model.train()
    pending: list[Tensor] = []
    for index in range(start, stop):
        pending.append(stepper.step(index, next(batches)))
        if index + 1 in readings:
            losses = torch.stack(pending).float().tolist()
            for offset, loss in enumerate(losses):
                if not math.isfinite(loss) or loss > MAX_LOSS:
                    raise Diverged(index + 2 - len(losses) + offset, loss)
            pending.clear()
            on_reading(Reading(index + 1, sum(losses) / len(losses)))
            stepper.model.train()


def reading_steps(steps: int, count: int) -> tuple[int, ...]:
    """Return ``count`` steps at which to read, evenly spaced, the last at the end."""
    return tuple(sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)}))
