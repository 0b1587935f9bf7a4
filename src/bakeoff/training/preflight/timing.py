"""Time a few steps of one method, for `bakeoff plan` and time budgets.

Shorter and less precise than the cost probe: three steps of one lane and of all lanes of the
search, and one batch of evaluation.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

from bakeoff.core.trial import Segment, Trial
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.base_cache import cache_base
from bakeoff.engine.device import free_memory
from bakeoff.engine.loop import step_with_retry
from bakeoff.methods.hook import Incompatible
from bakeoff.training import forgetting
from bakeoff.training.evaluate import item_losses, predict_all
from bakeoff.training.segment import describe_failure
from bakeoff.training.setup import (
    TrainingSetup,
    allows_recompute,
    build_setup,
    prepare_process,
    requested_switches,
)

STEPS = 3
ITEMS = 64
"""Most validation items whose losses are computed."""
FEW_ROWS = 8
"""Validation rows that are predicted first."""
ENOUGH_SECONDS = 1.0
"""Predictions that take less are timed again with more rows."""


def time_steps(value: dict[str, Any]) -> dict[str, Any]:
    """Time the first trial of the segment, then all trials together; a worker's entry point.

    Returns in seconds: ``load`` of one set-up, ``step`` and ``evaluate`` (one item) by number of
    lanes, ``predict`` (one item of one lane), and all steps under ``steps``; in bytes: ``peak``. If
    the method does not run, ``error_text`` is the reason.
    """
    segment = Segment.from_json(value)
    prepare_process(segment.trials[0].conditions)
    try:
        # the study's workers keep the base, too
        with warnings.catch_warnings(), cache_base():
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            return _measure(segment)
    except (Incompatible, RuntimeError, ValueError) as error:
        return {"error_text": describe_failure(error)}


def _measure(segment: Segment) -> dict[str, Any]:
    c = segment.trials[0].conditions
    switches, _ = requested_switches(segment)
    times: dict[str, Any] = {"step": {}, "steps": {}, "evaluate": {}, "error_text": None}
    for trials in (segment.trials[:1], segment.trials):
        profiling.reset_peak(c.device)
        started = time.perf_counter()
        setup, seconds = _time_with_fallback(trials, segment, switches)
        lanes = str(len(trials))
        times["load"] = seconds.pop(0)
        times["steps"][lanes] = seconds
        times["step"][lanes] = sorted(seconds)[len(seconds) // 2]
        times["evaluate"][lanes] = _evaluation_seconds(setup)
        if len(trials) == 1:
            times["predict"] = _prediction_seconds(setup)
            if forgetting.GENERAL in c.data:
                times["general"] = forgetting.estimate_seconds(setup, segment.base_path)
            times["parameters"] = setup.lanes.stack.values.shape[1]
        times["peak"] = profiling.peak_bytes(c.device)
        times["whole"] = time.perf_counter() - started
        del setup
        free_memory()
        if len(segment.trials) == 1:
            break
    return times


def _time_with_fallback(
    trials: tuple[Trial, ...], segment: Segment, switches: Switches
) -> tuple[TrainingSetup, list[float]]:
    """Time set-up and steps with the requested accelerators, or without if they fail."""
    try:
        return _time_setup(trials, segment, switches)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return _time_setup(trials, segment, Switches.all_off())


def _time_setup(
    trials: tuple[Trial, ...], segment: Segment, switches: Switches
) -> tuple[TrainingSetup, list[float]]:
    """Return the set-up, and the seconds of building it followed by those of each step."""
    seconds = []
    started = time.perf_counter()
    setup = build_setup(trials, segment.base_path, Path(segment.folder) / "data", switches)
    examples = setup.examples("train")
    seconds.append(time.perf_counter() - started)
    stepper = setup.stepper()
    batches = setup.batch_builder.training_steps(examples, [t.seed for t in trials])
    setup.model.train()
    setup.batch_builder.may_recompute = allows_recompute(segment)
    step_with_retry(stepper, 0, next(batches), setup.batch_builder.split_last_step)
    for batch in islice(batches, STEPS):
        started = time.perf_counter()
        stepper.step(1, batch).tolist()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return setup, seconds


def _evaluation_seconds(setup: TrainingSetup) -> float:
    """Return the seconds for the validation loss of one item, in all lanes together."""
    examples = setup.examples("validation")[:ITEMS]
    started = time.perf_counter()
    item_losses(setup, examples)
    return (time.perf_counter() - started) / len(examples)


def _prediction_seconds(setup: TrainingSetup) -> float:
    """Return the seconds for one prediction in one lane, of many rows at once as in a trial.

    A step of many rows may take no longer than one of few, so more are predicted until it counts.
    """
    rows, count = setup.rows("validation"), FEW_ROWS
    while True:
        some = rows[:count]
        started = time.perf_counter()
        try:
            predict_all(setup, some)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            builder = setup.batch_builder
            if not builder.switches.generation:
                raise
            builder.switches = dataclasses.replace(builder.switches, generation=False)
            continue
        seconds = time.perf_counter() - started
        if seconds > ENOUGH_SECONDS or len(some) == len(rows):
            return seconds / len(some)
        count *= 8
