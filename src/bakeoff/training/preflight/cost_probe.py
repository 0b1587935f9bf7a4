"""The cost probe: time and memory of one method's step, measured alone."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bakeoff.core import disk_full
from bakeoff.core.errors import first_line
from bakeoff.core.results import Cost, Status
from bakeoff.core.trial import Segment
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import free_memory, is_out_of_memory
from bakeoff.engine.loop import Stepper
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


def probe_cost(value: dict[str, Any]) -> dict[str, Any]:
    """Measure one method's step time and memory; never raises: a failure is a cost row."""
    segment = Segment.from_json(value)
    trial = segment.trials[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            cost = _probe(segment)
            return _add_latency(cost, segment).to_json()
    except Exception as error:  # same rule as a segment: a failure is a result
        if disk_full.disk_full_message(error):
            raise
        status = classify_failure(error)
        return Cost(trial.method.name, status, describe_failure(error)).to_json()


def _probe(segment: Segment) -> Cost:
    trial = segment.trials[0]
    c = trial.conditions
    prepare_process(c)
    task = make_task(c)
    data = Path(segment.folder) / "data"
    decision = _select_accelerators(segment, data)
    token_bytes = _token_bytes(segment, decision.switches)
    load_base(c, task, segment.base_path, trial.seed)  # first load: allocator and caches warm
    base = load_base(c, task, segment.base_path, trial.seed)
    profiling.release_memory()
    base_bytes = _bytes_in_use(c.device)
    del base
    profiling.release_memory()
    setup = build_setup([trial], segment.base_path, data, decision.switches)
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
    _check_evaluation_fits(setup)
    timed = batches[profiling.WARM_UP_STEPS :]
    tokens = sum(sum(b.n_tokens) for b in timed) / len(timed)
    on_cpu = c.device == "cpu"
    peak = cost.peak_bytes
    if on_cpu and peak is not None and base_bytes is not None:
        peak = max(0, peak - base_bytes)
    return Cost(
        method=trial.method.name,
        status=Status.DONE,
        trainable_parameters=setup.lanes.stack.values.shape[1],
        train_tokens_per_second=1000 * tokens / cost.milliseconds,
        step_milliseconds=cost.milliseconds,
        train_peak_bytes=peak,
        base_bytes=base_bytes,
        memory_kind="rss_above_base" if on_cpu else "device",
        steps=cost.steps,
        tokens_per_step=tokens,
        engine={
            "switches": dataclasses.asdict(setup.batch_builder.active_switches),
            "reasons": decision.reasons,
            "token_bytes": token_bytes,
            "pass_tokens": setup.batch_builder.pass_tokens,
            "rescue": setup.batch_builder.may_recompute,
        },
    )


def _add_latency(cost: Cost, segment: Segment) -> Cost:
    """Add what an example takes; that stays unknown where plain PEFT cannot do it here.

    It may not fit in memory without accelerators, or what is merged may not run on a rounded base.
    """
    free_memory()
    data = Path(segment.folder) / "data"
    try:
        found = latency.measure_latency(segment.trials[0], segment.base_path, data)
    except Exception as error:  # the method trains, whatever this is
        if disk_full.disk_full_message(error):
            raise
        return cost
    return dataclasses.replace(
        cost,
        inference_milliseconds=found.unmerged_ms,
        inference_merged_milliseconds=found.merged_ms,
    )


def _check_positions(setup: TrainingSetup, examples: Sequence[Example]) -> None:
    """Hold virtual tokens, and the longest row behind them, against the base's positions.

    Raises:
        Incompatible: they are more.
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
    """Evaluate the longest validation row, and read the longest answer: before any trial.

    Raises:
        Incompatible: not even one fits beside the trained tensors.
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
    """Return the steps to time, in passes that fit in memory; what is graphed is captured.

    Where nothing is graphed, a step of the longest examples is what must fit.
    """
    count, seeds = profiling.WARM_UP_STEPS + profiling.TIMED_STEPS, [t.seed for t in setup.trials]
    while True:
        batches = list(islice(setup.batch_builder.training_steps(examples, seeds), count))
        graphs = setup.batch_builder.switches.graphs
        try:
            for batch in batches if graphs else [setup.batch_builder.longest_step(examples)]:
                stepper.step(0, batch)
            return batches
        except RuntimeError as error:
            if not is_out_of_memory(error) or not setup.batch_builder.reduce_pass_size():
                raise
        stepper.discard_graphs(for_good=True)
        free_memory()


def _select_accelerators(segment: Segment, data: Path) -> ParityResult:
    """Return which switches hold for a method; ask first whether it trains on a quantised base.

    Raises:
        Incompatible: it does not train on a quantised base.
    """
    trial, c = segment.trials[0], segment.trials[0].conditions
    switches, reasons = requested_switches(segment)
    if c.quantize is not None and c.quantizer is not None:
        why = cannot_train_reason(trial.method, c.quantize, c.quantizer)
        if why is not None:
            raise Incompatible(f"it does not train on a base in {c.quantize}: {why}")
    try:
        found = probe_accelerators(trial, segment.base_path, data, switches)
    except Exception as error:  # whatever PEFT or the package raises of packed weights
        if c.quantize is None or is_out_of_memory(error) or isinstance(error, Incompatible):
            raise
        why = f"its first step on the base in {c.quantize} fails: {first_line(error)}"
        raise Incompatible(why) from error
    return found._replace(reasons={**reasons, **found.reasons})


def _measure_token_bytes(segment: Segment, switches: Switches) -> float | None:
    trial = segment.trials[0]
    device = trial.conditions.device
    plainer = dataclasses.replace(switches, compile=False, graphs=False)
    peaks, tokens = [], 0
    for lanes in (1, 2):
        setup = build_setup(
            [trial] * lanes, segment.base_path, Path(segment.folder) / "data", plainer
        )
        stepper = setup.stepper()
        setup.model.train()
        batch = next(
            setup.batch_builder.training_steps(setup.examples("train"), [trial.seed] * lanes)
        )
        stepper.step(0, batch)
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


def _token_bytes(segment: Segment, switches: Switches) -> float | None:
    """Return what one more packed token takes in a pass: the slope from one lane to two.

    None where lanes do not ride, two do not fit, or the difference drowns in the allocator's
    rounding.
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
