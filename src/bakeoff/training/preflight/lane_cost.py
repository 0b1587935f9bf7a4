"""What lanes cost: memory of one more token, and duration of a common step of a full group.

Both are measured on one set-up of the group. Its lanes are copies of one trial with the batches of
different seeds: time and memory do not depend on the values of the trained tensors.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files
from bakeoff.core.errors import first_line
from bakeoff.core.trial import Segment
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import free_memory
from bakeoff.engine.loop import Stepper, step_with_retry
from bakeoff.training.setup import TrainingSetup, build_setup

log = logging.getLogger(__name__)

TIMED_STEPS = 3
"""Timed steps of a full group of lanes, all of one batch."""


class LaneCost(NamedTuple):
    """Bytes of one more packed token in a pass, and milliseconds of a step of all lanes.

    ``token_bytes`` is None if it is below the allocator's granularity, ``milliseconds`` with a
    single lane; both if they could not be measured.
    """

    token_bytes: float | None
    milliseconds: float | None


def measure_lanes(segment: Segment, engine: Mapping[str, Any]) -> LaneCost:
    """Measure a group of the segment's trials, at least two lanes.

    ``engine`` is the decision of the cost probe. Without these figures the study assumes that lanes
    cost as much as separate steps, and passes are cut only when memory runs out.
    """
    found = LaneCost(None, None)
    if not engine["switches"]["lanes"]:
        return found
    # if a full group does not fit, the memory of a token is measured with two lanes
    for lanes in dict.fromkeys((max(len(segment.trials), 2), 2)):
        free_memory()
        try:
            setup = _set_up_group(segment, lanes, engine)
            found = LaneCost(_measure_token_bytes(setup), None)
            if len(segment.trials) == lanes:
                found = found._replace(milliseconds=_time_group(setup, engine, found.token_bytes))
        except Exception as error:  # no error here keeps the method from training
            if files.disk_full_message(error):
                raise
            log.info("a group of %d lanes was not measured: %s", lanes, first_line(error))
        setup = None  # type: ignore[assignment]  # before the next one is built
        if found.token_bytes is not None or found.milliseconds is not None:
            break
    return found


def _set_up_group(segment: Segment, lanes: int, engine: Mapping[str, Any]) -> TrainingSetup:
    switches, data = Switches(**engine["switches"]), Path(segment.folder) / "data"
    setup = build_setup([segment.trials[0]] * lanes, segment.base_path, data, switches)
    setup.model.train()
    return setup


def _measure_token_bytes(setup: TrainingSetup) -> float | None:
    """Return the slope of peak memory over tokens, from one lane in a pass to two.

    Both lanes have the same examples. The optimizer's step is left out: its memory does not depend
    on the tokens.
    """
    device, builder = setup.conditions.device, setup.batch_builder
    examples = setup.examples("train")[: builder.batch_size]
    stepper, width = setup.stepper(), builder.width
    peaks, slots = [], 0
    # compiled code and graphs allocate memory of their own, which does not grow with the tokens
    with builder.stack.without_compilation() if builder.stack else nullcontext():
        for lanes in (1, 2):
            builder.width = lanes
            step = builder.step([examples] * 2, ())
            first = StepBatch(tuple(p for p in step.passes if p.first == 0)).to(device)
            stepper.forward_backward(first)  # allocates workspaces
            profiling.release_memory()
            before = profiling.bytes_in_use(device)
            profiling.reset_peak(device)
            stepper.forward_backward(first)
            peak = profiling.peak_bytes(device)
            if before is None or peak is None:
                return None
            peaks.append(peak - before)
            slots = first.slots // lanes
    builder.width = width
    slope = (peaks[1] - peaks[0]) / slots
    return slope if slope > 0 else None


def _time_group(
    setup: TrainingSetup, engine: Mapping[str, Any], token_bytes: float | None
) -> float:
    """Return the median milliseconds of a step of all lanes.

    One batch is repeated: with CUDA graphs each shape costs a capture, and the fullest of many
    lanes differs little from step to step.
    """
    setup.fit_memory({**engine, "token_bytes": token_bytes})
    stepper, examples = setup.stepper(), setup.examples("train")
    # replicates differ in their seeds, so that no two of them share their batches
    seeds = [trial.seed + number for number, trial in enumerate(setup.trials)]

    def first_step() -> StepBatch:
        return next(setup.batch_builder.training_steps(examples, seeds))

    # compiles, captures, and finds the passes that fit
    _take_step(stepper, setup, first_step())
    batch, seconds = first_step(), []
    _take_step(stepper, setup, batch)
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        _take_step(stepper, setup, batch)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def _take_step(stepper: Stepper, setup: TrainingSetup, batch: StepBatch) -> None:
    """Take a step and wait for the device."""
    step_with_retry(stepper, 0, batch, setup.split_last_step).tolist()
