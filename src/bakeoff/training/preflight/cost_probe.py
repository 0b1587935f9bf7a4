"""The cost probe: step time and peak memory of one method, measured alone on real data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files
from bakeoff.core.errors import first_line
from bakeoff.core.results import Cost, Status
from bakeoff.core.trial import Segment, Trial
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.base_cache import BaseCache, cache_base
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import free_memory, is_out_of_memory
from bakeoff.engine.lanes.lanes import named_tensors
from bakeoff.engine.loop import Stepper
from bakeoff.engine.quantization import is_packed
from bakeoff.methods.hook import Incompatible
from bakeoff.tasks._base import Example
from bakeoff.training.evaluate import check_longest_answer, summed_losses
from bakeoff.training.preflight import latency, token_checks
from bakeoff.training.preflight.capabilities.quantized import cannot_train_reason
from bakeoff.training.preflight.lane_cost import measure_lanes
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


class PartSeconds:
    """Seconds of each part of a probe; each is logged when it ends."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
            log.info("cost probe of %s: %s took %.2f s", self.method, part, seconds)


def probe_cost(value: dict[str, Any]) -> dict[str, Any]:
    """Measure one method's step time and memory; a worker's entry point.

    The first trial of the segment is measured; if there are more, so is their common step.
    Returns a ``Cost`` as JSON. A failure is a cost with its status and reason, as in a segment.
    """
    segment = Segment.from_json(value)
    trial = segment.trials[0]
    log.info("cost probe start: %s", trial.method.name)
    parts = PartSeconds(trial.method.name)
    try:
        with warnings.catch_warnings(), cache_base() as base_cache:
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            cost = _probe(segment, base_cache, parts)
            with parts.measure("lanes"):
                cost = _add_lane_cost(cost, segment)
            with parts.measure("latency"):
                cost = _add_latency(cost, segment)
    except Exception as error:
        if files.disk_full_message(error):
            raise
        status = classify_failure(error)
        reason = describe_failure(error, trial.conditions)
        log.warning("cost probe of %s: %s: %s", trial.method.name, status, reason)
        return Cost(trial.method.name, status, reason, probe_seconds=parts.seconds).to_json()
    log.info("cost probe end: %s, %.3g ms a step", trial.method.name, cost.step_milliseconds or 0)
    return dataclasses.replace(cost, probe_seconds=parts.seconds).to_json()


def _probe(segment: Segment, base_cache: BaseCache, parts: PartSeconds) -> Cost:
    """Choose the method's accelerators, then time its steps.

    Every set-up gets a copy of the one base that is kept in ``base_cache``.
    """
    trial = segment.trials[0]
    prepare_process(trial.conditions)
    data = Path(segment.folder) / "data"
    with parts.measure("base"):
        base_bytes = _measure_base_bytes(segment, trial)
    with parts.measure("parity"):
        parity = _select_accelerators(segment, data)
    if trial.conditions.device == "cpu":
        # the process's memory is read, which the libraries' first steps have increased
        base_bytes = _measure_base_bytes(segment, trial)
    with parts.measure("set-up"):
        setup = _set_up_alone(segment, base_cache, data, parity.switches)
    steps = _time_steps(setup, segment, parts)
    return _build_cost(setup, steps, parity, base_bytes)


def _measure_base_bytes(segment: Segment, trial: Trial) -> int | None:
    """Return the memory in use with the base model alone, in bytes."""
    c = trial.conditions
    base = load_base(c, make_task(c), segment.base_path, trial.seed)
    profiling.release_memory()
    base_bytes = profiling.bytes_in_use(c.device)
    del base
    return base_bytes


def _set_up_alone(
    segment: Segment, base_cache: BaseCache, data: Path, switches: Switches
) -> TrainingSetup:
    """Return the set-up of the one trial; nothing else is in memory.

    The kept base is dropped unless all its tensors are the set-up's own.
    """
    setup = build_setup(segment.trials[:1], segment.base_path, data, switches)
    used = {t.data_ptr() for t in named_tensors(setup.model).values() if not is_packed(t)}
    if not base_cache.addresses() <= used:
        base_cache.clear()
    return setup


class TimedSteps(NamedTuple):
    """The measured cost of a step, and the mean number of real tokens in one."""

    cost: profiling.StepCost
    tokens: float


def _time_steps(setup: TrainingSetup, segment: Segment, parts: PartSeconds) -> TimedSteps:
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
    with parts.measure("first steps"):  # compiles and captures
        batches, peak = _find_fitting_batches(setup, stepper, examples)
    with parts.measure("timed steps"):
        cost = profiling.measure_steps(
            lambda i: stepper.step(min(i, c.steps - 1), batches[i % len(batches)]), c.device
        )
    taken = profiling.WARM_UP_STEPS + cost.steps
    if stepper.never_updated(0):
        raise Incompatible(NO_GRADIENT.format(steps=taken))
    with parts.measure("evaluation"):
        # here, because in a trial too the optimizer's state is in memory during evaluation
        _check_evaluation_fits(setup)
    timed = [batches[i % len(batches)] for i in range(profiling.WARM_UP_STEPS, taken)]
    return TimedSteps(
        cost if peak is None else cost._replace(peak_bytes=peak),
        sum(sum(b.n_tokens) for b in timed) / len(timed),
    )


def _build_cost(
    setup: TrainingSetup, steps: TimedSteps, parity: ParityResult,
    base_bytes: int | None,
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
            "token_bytes": None,
            "pass_tokens": setup.batch_builder.pass_tokens,
            "rescue": setup.batch_builder.may_recompute,
        },
    )


def _add_lane_cost(cost: Cost, segment: Segment) -> Cost:
    """Return the cost with the memory of a token, and the time of a common step of all trials.

    They are measured last, because the memory of many lanes is not that of the method.
    """
    engine, lanes = cost.engine or {}, len(segment.trials)
    found = measure_lanes(segment, engine)
    cost = dataclasses.replace(cost, engine={**engine, "token_bytes": found.token_bytes})
    if found.milliseconds is None:
        return cost
    ratio = found.milliseconds / (cost.step_milliseconds or math.nan)
    log.info("a step of %d lanes takes %.3g times a single one", lanes, ratio)
    return dataclasses.replace(cost, lanes_ratio=ratio, lanes_timed=lanes)


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
) -> tuple[list[StepBatch], int | None]:
    """Return the steps to time, in passes that fit in memory, and the peak memory with graphs.

    With CUDA graphs, only steps of the middle shape are timed, because every shape costs a capture;
    a replay allocates nothing, so the peak is that of the largest step without a graph. Without
    them, one step of the longest examples must fit, and the peak is that of the timed steps.
    """
    builder, device = setup.batch_builder, setup.conditions.device
    count, seeds = profiling.WARM_UP_STEPS + profiling.TIMED_STEPS, [t.seed for t in setup.trials]
    while True:
        batches = list(islice(builder.training_steps(examples, seeds), count))
        batches_by_size = sorted(batches, key=lambda b: b.slots)
        try:
            if not builder.switches.graphs:
                stepper.step(0, builder.longest_step(examples))
                return batches, None
            stepper.step(0, batches_by_size[-1], capture=False)  # allocates workspaces
            profiling.reset_peak(device)
            stepper.step(0, batches_by_size[-1], capture=False)
            peak = profiling.peak_bytes(device)
            middle = batches_by_size[len(batches) // 2].slots
            batches = [b for b in batches if b.slots == middle]
            stepper.step(0, batches[0])
            return batches, peak
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
