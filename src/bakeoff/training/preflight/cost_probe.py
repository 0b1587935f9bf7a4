"""The cost probe: step time and peak memory of one method, measured alone on real data."""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bakeoff.core import files
from bakeoff.core.errors import first_line
from bakeoff.core.results import Cost, Status
from bakeoff.core.trial import Segment, Trial
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import free_memory, is_out_of_memory
from bakeoff.engine.loop import Stepper, step_with_retry
from bakeoff.methods.hook import Incompatible
from bakeoff.tasks._base import Example
from bakeoff.training.evaluate import check_longest_answer, summed_losses
from bakeoff.training.preflight import latency, token_checks
from bakeoff.training.preflight.capabilities.quantized import cannot_train_reason
from bakeoff.training.preflight.parity import ParityResult, probe_accelerators
from bakeoff.training.segment import NO_GRADIENT, classify_failure, describe_failure
from bakeoff.training.setup import (
    TrainingSetup,
    allows_recompute,
    build_setup,
    load_base,
    make_task,
    prepare_process,
    requested_switches,
)

log = logging.getLogger(__name__)

LANE_STEPS = 5
"""Timed steps of a full group of lanes."""


def probe_cost(value: dict[str, Any]) -> dict[str, Any]:
    """Measure one method's step time and memory; a worker's entry point.

    The first trial of the segment is measured; if there are more, so is their common step.
    Returns a ``Cost`` as JSON. A failure is a cost with its status and reason, as in a segment.
    """
    segment = Segment.from_json(value)
    trial = segment.trials[0]
    log.info("cost probe start: %s", trial.method.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            cost = _add_latency(_add_lanes_ratio(_probe(segment), segment), segment)
    except Exception as error:
        if files.disk_full_message(error):
            raise
        status = classify_failure(error)
        reason = describe_failure(error, trial.conditions)
        log.warning("cost probe of %s: %s: %s", trial.method.name, status, reason)
        return Cost(trial.method.name, status, reason).to_json()
    log.info("cost probe end: %s, %.3g ms a step", trial.method.name, cost.step_milliseconds or 0)
    return cost.to_json()


def _probe(segment: Segment) -> Cost:
    """Choose the method's accelerators, then time its steps."""
    trial = segment.trials[0]
    prepare_process(trial.conditions)
    data = Path(segment.folder) / "data"
    parity = _select_accelerators(segment, data)
    token_bytes = _token_bytes(segment, parity.switches)
    base_bytes = _measure_base_bytes(segment, trial)
    setup = build_setup([trial], segment.base_path, data, parity.switches)
    steps = _time_steps(setup, segment)
    return _build_cost(setup, steps, parity, base_bytes, token_bytes)


def _measure_base_bytes(segment: Segment, trial: Trial) -> int | None:
    """Return the memory of the base model alone, in bytes."""
    c, task = trial.conditions, make_task(trial.conditions)
    load_base(c, task, segment.base_path, trial.seed)  # warms up the allocator and caches
    base = load_base(c, task, segment.base_path, trial.seed)
    profiling.release_memory()
    base_bytes = _bytes_in_use(c.device)
    del base
    profiling.release_memory()
    return base_bytes


class TimedSteps(NamedTuple):
    """The measured cost of a step, and the mean number of real tokens in one."""

    cost: profiling.StepCost
    tokens: float


def _time_steps(setup: TrainingSetup, segment: Segment) -> TimedSteps:
    """Time training steps of the one trial, and check that its evaluation fits into memory.

    Raises:
        Incompatible: rows are too long, evaluation does not fit, or no gradient reached any trained
            tensor.
    """
    c = setup.conditions
    examples = setup.examples("train")
    _check_positions(setup, examples)
    profiling.release_memory()
    setup.batch_builder.may_recompute = allows_recompute(segment)
    stepper = setup.stepper()
    setup.model.train()
    batches = _find_fitting_batches(setup, stepper, examples)
    cost = profiling.measure_steps(
        lambda i: stepper.step(min(i, c.steps - 1), batches[i]), c.device
    )
    if stepper.never_updated(0):
        raise Incompatible(NO_GRADIENT.format(steps=len(batches)))
    # here, because in a trial too the optimizer's state is in memory during evaluation
    _check_evaluation_fits(setup)
    timed = batches[profiling.WARM_UP_STEPS :]
    return TimedSteps(cost, sum(sum(b.n_tokens) for b in timed) / len(timed))


def _build_cost(
    setup: TrainingSetup, steps: TimedSteps, parity: ParityResult,
    base_bytes: int | None, token_bytes: float | None,
) -> Cost:  # fmt: skip
    on_cpu = setup.conditions.device == "cpu"
    peak = steps.cost.peak_bytes
    if on_cpu and peak is not None and base_bytes is not None:
        # on the CPU the peak is the process's, which includes libraries and the base model
        peak = max(0, peak - base_bytes)
    return Cost(
        method=setup.trials[0].method.name,
        status=Status.DONE,
        trainable_parameters=setup.lanes.stack.values.shape[1],
        train_tokens_per_second=1000 * steps.tokens / steps.cost.milliseconds,
        step_milliseconds=steps.cost.milliseconds,
        train_peak_bytes=peak,
        base_bytes=base_bytes,
        memory_kind="rss_above_base" if on_cpu else "device",
        steps=steps.cost.steps,
        tokens_per_step=steps.tokens,
        engine={
            "switches": dataclasses.asdict(setup.batch_builder.active_switches),
            "reasons": parity.reasons,
            "token_bytes": token_bytes,
            "pass_tokens": setup.batch_builder.pass_tokens,
            "rescue": setup.batch_builder.may_recompute,
        },
    )


def _add_lanes_ratio(cost: Cost, segment: Segment) -> Cost:
    """Return the cost with the time of a common step of all trials, in steps of one trial.

    It is measured last, because the memory of many lanes is not that of the method. Without it the
    study assumes that lanes are as expensive as separate steps.
    """
    if len(segment.trials) == 1 or not (cost.engine or {})["switches"]["lanes"]:
        return cost
    free_memory()
    try:
        milliseconds = _time_lanes(segment, cost.engine or {})
    except Exception as error:  # no error here keeps the method from training
        if files.disk_full_message(error):
            raise
        log.info("a step of %d lanes was not timed: %s", len(segment.trials), first_line(error))
        return cost
    ratio = milliseconds / (cost.step_milliseconds or math.nan)
    log.info("a step of %d lanes takes %.3g times a single one", len(segment.trials), ratio)
    return dataclasses.replace(cost, lanes_ratio=ratio)


def _time_lanes(segment: Segment, engine: dict[str, Any]) -> float:
    """Return the median milliseconds of a step of all trials in lanes."""
    switches = Switches(**engine["switches"])
    data, trials = Path(segment.folder) / "data", segment.trials
    setup = build_setup(trials, segment.base_path, data, switches)
    setup.fit_memory(engine)
    stepper, builder = setup.stepper(), setup.batch_builder
    setup.model.train()
    # replicates differ in their seeds, so that no two of them share their batches
    seeds = [trial.seed + number for number, trial in enumerate(trials)]
    batches = list(islice(builder.training_steps(setup.examples("train"), seeds), LANE_STEPS))
    for batch in batches:  # compiles, captures, and finds the passes that fit
        step_with_retry(stepper, 0, batch, setup.split_last_step)
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        step_with_retry(stepper, 0, batch, setup.split_last_step).tolist()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def _add_latency(cost: Cost, segment: Segment) -> Cost:
    """Return the cost with inference times, or without them if they cannot be measured.

    Without accelerators the model may not fit in memory; merging may not work on a quantised base.
    """
    free_memory()
    data = Path(segment.folder) / "data"
    try:
        measured = latency.measure_latency(segment.trials[0], segment.base_path, data)
    except Exception as error:  # no error here keeps the method from training
        if files.disk_full_message(error):
            raise
        log.info("inference was not timed: %s", first_line(error))
        return cost
    return dataclasses.replace(
        cost,
        inference_milliseconds=measured.unmerged_ms,
        inference_merged_milliseconds=measured.merged_ms,
    )


def _check_positions(setup: TrainingSetup, examples: Sequence[Example]) -> None:
    """Check that virtual tokens and the longest row fit into the base's positions.

    Raises:
        Incompatible: they do not.
    """
    virtual = setup.virtual_tokens
    longest = max(len(e.tokens) for e in examples)
    positions = token_checks.BaseLimits.of(setup.model).positions
    if virtual and positions is not None and virtual + longest > positions:
        raise Incompatible(
            f"its {virtual} virtual tokens and a row of {longest} are more than the base's "
            f"{positions} positions"
        )


def _check_evaluation_fits(setup: TrainingSetup) -> None:
    """Evaluate the longest validation row, and run the model on the longest possible answer.

    Raises:
        Incompatible: not even one fits into memory with the trained tensors.
    """
    longest = max(setup.examples("validation"), key=lambda e: len(e.tokens))
    what = f"row of {len(longest.tokens):,} tokens can be evaluated"
    try:
        summed_losses(setup, [longest])
        what = "answer of full length can be generated"
        check_longest_answer(setup, token_checks.BaseLimits.of(setup.model).positions)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = f"not even one {what} in memory: {first_line(error)}"
        raise Incompatible(why) from error


def _find_fitting_batches(
    setup: TrainingSetup, stepper: Stepper, examples: Sequence[Example]
) -> list[StepBatch]:
    """Return the steps to time, in passes that fit in memory.

    With CUDA graphs every step is taken once, so that its shape is captured before the timing.
    Otherwise one step of the longest examples must fit.
    """
    builder = setup.batch_builder
    count, seeds = profiling.WARM_UP_STEPS + profiling.TIMED_STEPS, [t.seed for t in setup.trials]
    while True:
        batches = list(islice(builder.training_steps(examples, seeds), count))
        graphs = builder.switches.graphs
        try:
            for batch in batches if graphs else [builder.longest_step(examples)]:
                stepper.step(0, batch)
            return batches
        except RuntimeError as error:
            if not is_out_of_memory(error) or not builder.reduce_pass_size():
                raise
        log.info(
            "out of memory: passes of at most %s tokens, recompute %s",
            builder.pass_tokens, builder.active_switches.checkpointing,
        )  # fmt: skip
        stepper.discard_graphs(for_good=True)
        free_memory()


def _select_accelerators(segment: Segment, data: Path) -> ParityResult:
    """Return the accelerators that work with the method, after checking a quantised base.

    Raises:
        Incompatible: the method does not train on a quantised base.
    """
    trial, c = segment.trials[0], segment.trials[0].conditions
    switches, reasons = requested_switches(segment)
    if c.quantize is not None and c.quantizer is not None:
        why = cannot_train_reason(trial.method, c.quantize, c.quantizer)
        if why is not None:
            raise Incompatible(f"it does not train on a base in {c.quantize}: {why}")
    try:
        parity = probe_accelerators(trial, segment.base_path, data, switches)
    except Exception as error:  # PEFT and quantisers raise many kinds on packed weights
        if c.quantize is None or is_out_of_memory(error) or isinstance(error, Incompatible):
            raise
        why = f"its first step on the base in {c.quantize} fails: {first_line(error)}"
        raise Incompatible(why) from error
    parity = parity._replace(reasons={**reasons, **parity.reasons})
    _log_accelerators(trial, parity)
    return parity


def _log_accelerators(trial: Trial, parity: ParityResult) -> None:
    on = [name for name, value in dataclasses.asdict(parity.switches).items() if value]
    log.info("accelerators for %s: %s", trial.method.name, ", ".join(on) or "none")
    for name, why in parity.reasons.items():
        log.info("accelerator %s is off for %s: %s", name, trial.method.name, why)


def _token_bytes(segment: Segment, switches: Switches) -> float | None:
    """Return the memory of one more packed token in a pass, in bytes.

    None if lanes are off, two do not fit, or the difference is below the allocator's granularity.
    """
    if not switches.lanes:
        return None
    try:
        return _measure_token_bytes(segment, switches)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    return None


def _measure_token_bytes(segment: Segment, switches: Switches) -> float | None:
    """Return the slope of peak memory over tokens, from one lane to two with the same tokens."""
    trial = segment.trials[0]
    device = trial.conditions.device
    # compiling and graphs allocate memory of their own, which does not grow with the tokens
    eager = dataclasses.replace(switches, compile=False, graphs=False)
    data = Path(segment.folder) / "data"
    peaks, tokens = [], 0
    for lanes in (1, 2):
        setup = build_setup([trial] * lanes, segment.base_path, data, eager)
        stepper = setup.stepper()
        setup.model.train()
        examples = setup.examples("train")
        batch = next(setup.batch_builder.training_steps(examples, [trial.seed] * lanes))
        stepper.step(0, batch)  # the first step allocates the optimizer's state
        profiling.release_memory()
        before = _bytes_in_use(device)
        profiling.reset_peak(device)
        stepper.step(0, batch)
        peak = profiling.peak_bytes(device)
        if before is None or peak is None:
            return None
        peaks.append(peak - before)
        tokens = batch.slots // lanes
        del setup, stepper
        free_memory()
    slope = (peaks[1] - peaks[0]) / tokens
    return slope if slope > 0 else None


def _bytes_in_use(device: str) -> int | None:
    if device == "cpu":
        return profiling.resident_bytes()
    return int(torch.cuda.memory_allocated(device))
