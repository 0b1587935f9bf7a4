"""A few timed steps of one method on this machine: what ``plan`` and a budget in hours count with.

Run by an executor in a process of its own (JSON in, JSON out), like the cost probe but shorter and
coarser: one lane and all lanes of the search, three steps each, one batch of evaluation.
"""

from __future__ import annotations

import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bakeoff.core.trial import Segment, Trial
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.device import autocast, free_memory
from bakeoff.engine.loop import step_with_retry
from bakeoff.methods.hook import Incompatible
from bakeoff.training import forgetting
from bakeoff.training.evaluate import item_losses
from bakeoff.training.segment import describe_failure
from bakeoff.training.setup import (TrainingSetup, build_setup, allows_recompute, prepare_process, requested_switches)

STEPS = 3
ITEMS = 64
"""Validation items that are evaluated, at most; answers are generated for an eighth of them."""


def time_steps(value: dict[str, Any]) -> dict[str, Any]:
    """Time the segment's trials together and the first of them alone.

    Returns seconds: ``load`` of one build, ``step`` and ``evaluate`` (an item) by number of lanes,
    ``predict`` (an item of one lane), with every step's own time under ``steps``; bytes: ``peak``;
    or the ``error`` that keeps the method from running.
    """
    segment = Segment.from_json(value)
    prepare_process(segment.trials[0].conditions)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            return _measure(segment)
    except (Incompatible, RuntimeError, ValueError) as error:
        return {"error_text": describe_failure(error)}


def _measure(segment: Segment) -> dict[str, Any]:
    c = segment.trials[0].conditions
    switches, _ = requested_switches(segment)
    found: dict[str, Any] = {"step": {}, "steps": {}, "evaluate": {}, "error_text": None}
    for trials in (segment.trials[:1], segment.trials):
        profiling.reset_peak(c.device)
        started = time.perf_counter()
        bench, seconds = _time_with_fallback(trials, segment, switches)
        lanes = str(len(trials))
        found["load"] = seconds.pop(0)
        found["steps"][lanes] = seconds
        found["step"][lanes] = sorted(seconds)[len(seconds) // 2]
        found["evaluate"][lanes] = _evaluation_seconds(bench)
        if len(trials) == 1:
            found["predict"] = _prediction_seconds(bench)
            if forgetting.GENERAL in c.data:
                found["general"] = forgetting.estimate_seconds(bench, segment.base_path)
            found["parameters"] = bench.lanes.stack.values.shape[1]
        found["peak"] = profiling.peak_bytes(c.device)
        found["whole"] = time.perf_counter() - started
        del bench
        free_memory()
        if len(segment.trials) == 1:
            break
    return found


def _time_with_fallback(
    trials: tuple[Trial, ...], segment: Segment, switches: Switches
) -> tuple[TrainingSetup, list[float]]:
    """Return a bench and the seconds of its build and of its steps; plain where lanes fail."""
    try:
        return _time_setup(trials, segment, switches)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return _time_setup(trials, segment, Switches.plain())


def _time_setup(
    trials: tuple[Trial, ...], segment: Segment, switches: Switches
) -> tuple[TrainingSetup, list[float]]:
    seconds = []
    started = time.perf_counter()
    bench = build_setup(trials, segment.base_path, Path(segment.folder) / "data", switches)
    examples = bench.examples("train")
    seconds.append(time.perf_counter() - started)
    stepper = bench.stepper()
    batches = bench.feed.training(examples, [t.seed for t in trials])
    bench.model.train()
    bench.feed.rescue = allows_recompute(segment)
    step_with_retry(stepper, 0, next(batches), bench.feed.halve)
    for batch in islice(batches, STEPS):
        started = time.perf_counter()
        stepper.step(1, batch).tolist()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return bench, seconds


def _evaluation_seconds(bench: TrainingSetup) -> float:
    """Return the seconds that the validation loss of one item takes, all lanes together."""
    examples = bench.examples("validation")[:ITEMS]
    started = time.perf_counter()
    item_losses(bench, examples)
    return (time.perf_counter() - started) / len(examples)


@torch.no_grad()
def _prediction_seconds(bench: TrainingSetup) -> float:
    """Return the seconds that one answer takes in one lane."""
    c, rows = bench.conditions, bench.rows("validation")[: ITEMS // 8]
    bench.model.eval()
    bench.lanes.ride(0, 1, len(rows))
    started = time.perf_counter()
    with autocast(c.device, c.precision):
        bench.task.predict(bench.model, bench.tokenizer, rows, c.device)
    return (time.perf_counter() - started) / len(rows)
