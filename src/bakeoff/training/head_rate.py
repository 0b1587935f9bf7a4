"""Choose the learning rate of the task's new output layer, on the output layer alone.

The base is frozen, so the features of a row are constant. They are computed once, without the
base's dropout; then all rates are trained on them together, in lanes.

Tensor axes: N = rows, K = lanes, B = rows of a step, D = width of the features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from bakeoff.core import files
from bakeoff.core.trial import LEARNING_RATE, Segment, Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import autocast, is_device_lost, retry_with_half
from bakeoff.engine.heartbeat import beat
from bakeoff.engine.loop import LossReading, train
from bakeoff.tasks._base import Example
from bakeoff.training.evaluate import LaneTable, item_losses
from bakeoff.training.setup import TrainingSetup, build_setup, prepare_process

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Learning rates that are tried first."""
GRID_STEP = 10**0.5
"""Ratio of a further rate to the last one of the grid; the rate is rounded to one digit."""
MOST_EXTENSIONS = 3
"""Most rates that are added beyond an edge of the grid."""
ORDERS = 3
"""Orders of the training rows; each rate is trained once in each."""
VALIDATION_ROWS = 1_000
"""Most validation rows that the loss is computed on."""
CHECKED_ROWS = 8
"""Validation rows whose losses are computed from the text, too, to check the stored features."""

FEATURE_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""Exceptions of a model that does not run on stored features."""

log = logging.getLogger(__name__)


def tune_head(value: dict[str, Any]) -> dict[str, Any]:
    """Find the output layer's learning rate of lowest validation loss; a worker's entry point.

    ``value`` is a segment of one trial of the method `head`. The grid grows beyond its edge until
    the best rate is inside. Returns the ``learning_rate`` and the ``grid``: a mean validation
    ``loss`` for each ``learning_rate``, None where training diverged.
    """
    segment = Segment.from_json(value)
    prepare_process(segment.trials[0].conditions)
    search = RateSearch(segment)
    losses = search.losses(RATES)
    for _ in range(MOST_EXTENSIONS):
        rate = rate_beyond_edge(losses)
        if rate is None:
            break
        losses |= search.losses([rate])
    log.info("learning rates of the output layer, by validation loss: %s", losses)
    return {
        LEARNING_RATE: choose_rate(losses),
        "grid": [
            {LEARNING_RATE: rate, "loss": loss if math.isfinite(loss) else None}
            for rate, loss in sorted(losses.items())
        ],
    }


def choose_rate(losses: Mapping[float, float]) -> float:
    """Return the rate of lowest loss; the lower one of equal losses."""
    return min(losses, key=lambda rate: (losses[rate], rate))


def rate_beyond_edge(losses: Mapping[float, float]) -> float | None:
    """Return the next rate beyond the best one, None if that is inside the grid."""
    best = choose_rate(losses)
    if best == max(losses):
        return float(f"{best * GRID_STEP:.0e}")
    return float(f"{best / GRID_STEP:.0e}") if best == min(losses) else None


class RateSearch:
    """Trains the output layer at several rates, and keeps the features between calls."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._features: Tensor | None = None
        self._stored = True

    def losses(self, rates: Sequence[float]) -> dict[float, float]:
        """Return each rate's mean validation loss over the orders, infinite if one diverged."""
        (trial,) = self._segment.trials
        trials = [dataclasses.replace(trial, setting={LEARNING_RATE: rate}) for rate in rates]
        found = self._train([t for t in trials for _ in range(ORDERS)])
        return dict(zip(rates, np.reshape(found, (-1, ORDERS)).mean(1).tolist(), strict=True))

    def _train(self, trials: Sequence[Trial]) -> list[float]:
        """Train all trials in lanes; return their validation losses.

        Where stored features do not work, the text is used: slower, but right for any base.
        """
        if self._stored:
            try:
                found = self._train_on_features(trials)
            except FEATURE_ERRORS as error:
                if files.disk_full_message(error) or is_device_lost(error):
                    raise
                log.warning("no stored features for the output layer", exc_info=error)
                found = None
            if found is not None:
                return found
            self._stored = False
        setup = self._build(trials)
        return train_lanes(setup, rows_of_study(setup))[0]

    def _train_on_features(self, trials: Sequence[Trial]) -> list[float] | None:
        """Train on stored features; return None if they give other losses than the text."""
        setup = self._build(trials)
        rows = rows_of_study(setup)
        if self._features is None:
            self._features = compute_features(setup, rows)
        with use_features(setup, self._features):
            found, of_features = train_lanes(setup, number_rows(rows))
        if losses_agree(item_losses(setup, rows.checked), of_features):
            return found
        log.warning("stored features of the output layer give other losses than the text")
        return None

    def _build(self, trials: Sequence[Trial]) -> TrainingSetup:
        switches = dataclasses.replace(Switches.all_off(), lanes=True)
        data = Path(self._segment.folder) / "data"
        return build_setup(trials, self._segment.base_path, data, switches)


class Rows(NamedTuple):
    """Tokenised rows of train and validation.

    ``orders`` has the numbers of the training rows that each step takes, ``[steps, B]``.
    """

    train: list[Example]
    orders: list[LaneTable]
    validation: list[Example]

    @property
    def checked(self) -> list[Example]:
        """The validation rows whose losses are compared."""
        return self.validation[:CHECKED_ROWS]


def rows_of_study(setup: TrainingSetup) -> Rows:
    """Return the rows that the study's steps take, in several orders, and validation rows."""
    c, seed = setup.conditions, setup.trials[0].seed
    examples = setup.examples("train")
    steps = np.array(list(islice(step_indices(len(examples), c.batch_size, seed), c.steps)))
    used, numbers = np.unique(steps, return_inverse=True)
    rng = np.random.default_rng([seed, 0x4EAD])
    shape = (c.steps, c.batch_size)
    orders = [numbers.reshape(shape)]
    orders += [rng.permutation(numbers.ravel()).reshape(shape) for _ in range(1, ORDERS)]
    validation = setup.examples("validation")[:VALIDATION_ROWS]
    return Rows([examples[i] for i in used], orders, validation)


def number_rows(rows: Rows) -> Rows:
    """Return the rows with their number in place of their tokens, validation after train."""
    n = len(rows.train)
    return rows._replace(
        train=[Example((i,), e.labels) for i, e in enumerate(rows.train)],
        validation=[Example((n + i,), e.labels) for i, e in enumerate(rows.validation)],
    )


def train_lanes(setup: TrainingSetup, rows: Rows) -> tuple[list[float], LaneTable]:
    """Train all lanes, every ``ORDERS``th in the same order, over the study's steps.

    Returns their mean validation losses, infinite where training diverged, and the losses of the
    checked rows ``[K, rows]``.
    """
    steps = setup.conditions.steps
    diverged: list[bool] = []

    def batches() -> Iterator[StepBatch]:
        for step in range(steps):
            picked = [[rows.train[i] for i in order[step]] for order in rows.orders]
            yield setup.batch_builder.step(picked * (len(setup.trials) // ORDERS), ())

    def read(reading: LossReading) -> None:
        diverged[:] = [at is not None for at in reading.diverged]

    train(setup.stepper(), batches(), (0, steps), (steps,), read)
    losses = item_losses(setup, rows.validation)
    means = np.where(diverged or False, math.inf, np.nan_to_num(losses.mean(1), nan=math.inf))
    return means.tolist(), losses[:, :CHECKED_ROWS]


def losses_agree(of_text: LaneTable, of_features: LaneTable) -> bool:
    """Return whether the best lane has the same losses from text and from stored features."""
    best = int(np.argmin(np.nan_to_num(of_features.mean(1), nan=math.inf)))
    difference = np.abs(of_text[best] - of_features[best]).mean()
    # bf16 gives other roundings in a batch of another shape
    return bool(difference <= 0.02 + 0.1 * of_text[best].mean())


def compute_features(setup: TrainingSetup, rows: Rows) -> Tensor:
    """Return what enters the output layer for each training and validation row, ``[N, ...]``."""
    examples = [*rows.train, *rows.validation]
    setup.model.eval()
    setup.lanes.run_single(0)
    size = setup.conditions.evaluation_batch_size
    return retry_with_half(partial(_compute_features, setup, examples), size, "features")


@torch.no_grad()
def _compute_features(setup: TrainingSetup, examples: Sequence[Example], size: int) -> Tensor:
    c, pad = setup.conditions, setup.batch_builder.pad_id
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    parts = []
    for start in range(0, len(order), size):
        beat()
        picked = [examples[i] for i in order[start : start + size]]
        with record_input(first_head_layer(setup)) as seen, autocast(c.device, c.precision):
            setup.task.item_losses(setup.model, setup.task.batch(picked, pad, c.device))
        # of the states of all tokens, an encoder's output layer reads the first one
        parts.append(seen[0][:, :1].cpu() if seen[0].dim() > 2 else seen[0].cpu())
    return torch.cat(parts)[torch.tensor(np.argsort(order))]


def head_layers(setup: TrainingSetup) -> list[nn.Module]:
    """Return the layers that the task's head consists of."""
    heads = setup.task.heads
    return [m for name, m in setup.model.named_modules() if name.rsplit(".", 1)[-1] in heads]


def first_head_layer(setup: TrainingSetup) -> nn.Module:
    """Return the layer of the head that runs first."""
    found = head_layers(setup)
    ran: list[nn.Module] = []
    if len(found) == 1:
        return found[0]
    handles = [m.register_forward_pre_hook(lambda m, _: ran.append(m)) for m in found]
    try:
        with torch.no_grad(), autocast(setup.conditions.device, setup.conditions.precision):
            one = setup.examples("validation")[:1]
            batch = setup.task.batch(one, setup.batch_builder.pad_id, setup.conditions.device)
            setup.task.item_losses(setup.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return ran[0]


@contextlib.contextmanager
def record_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Record the first argument of each call of a layer, after its hooks have changed it."""
    seen: list[Tensor] = []
    original = layer.forward

    def forward(states: Tensor, *arguments: Any, **named: Any) -> Any:
        seen.append(states)
        return original(states, *arguments, **named)

    layer.forward = forward
    try:
        yield seen
    finally:
        del layer.forward


@contextlib.contextmanager
def use_features(setup: TrainingSetup, features: Tensor) -> Iterator[None]:
    """Let the output layer read stored features; a row's only token is its number.

    A head of several layers, which may not be adjacent, runs in the model, and the base on one
    padding token for each row.
    """
    model, layer, current = setup.model, first_head_layer(setup), [torch.empty(0)]

    def look_up(numbers: Tensor) -> Tensor:
        return features[numbers[:, 0].cpu()].to(numbers.device)

    def run_layer(input_ids: Tensor, **_: Any) -> ModelOutput:
        return ModelOutput(logits=layer(look_up(input_ids)).flatten(1))

    def swap_inputs(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
        current[0] = look_up(named["input_ids"])
        return arguments, {**named, "input_ids": torch.zeros_like(named["input_ids"])}

    def swap_states(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return current[0], *arguments[1:]

    if len(head_layers(setup)) == 1:
        model.forward = run_layer
        handles = []
    else:
        handles = [
            model.register_forward_pre_hook(swap_inputs, with_kwargs=True),
            layer.register_forward_pre_hook(swap_states),
        ]
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        for handle in handles:
            handle.remove()
