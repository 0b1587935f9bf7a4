"""What is found out before any trial is paid for: the machine, the methods' arguments, the costs.

Functions that an executor runs in a process of their own (JSON in, JSON out): ``machine`` resolves
device, precision and threads; ``check`` refuses bad method arguments, against the base's real
modules; ``probe`` is the cost probe: one method alone on real data, warm-up and then timed steps.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import bakeoff
from bakeoff.core import disk_full
from bakeoff.core.errors import BakeoffError, PreflightError, first_line
from bakeoff.core.results import Cost, Status
from bakeoff.core.trial import Segment
from bakeoff.data.rows import read_rows
from bakeoff.engine import profiling, quantization
from bakeoff.engine.accelerators import Switches, explain
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import free_memory, out_of_memory, resolve_device, resolve_precision
from bakeoff.engine.loop import Stepper
from bakeoff.methods.arguments import check_config, check_targets
from bakeoff.methods.hook import Incompatible
from bakeoff.metrics import describe
from bakeoff.tasks import Example, Task, load_tokenizer
from bakeoff.training.evaluate import read_longest_answer, summed_losses
from bakeoff.training.preflight import latency, tied_weights, token_checks
from bakeoff.training.preflight.capabilities.quantized import refusal
from bakeoff.training.preflight.parameter_count import Shape
from bakeoff.training.preflight.parity import Decision, decide
from bakeoff.training.segment import UNMOVED, classify_failure, describe_failure
from bakeoff.training.setup import (
    Bench,
    build,
    load_base,
    make_task,
    may_rescue,
    prepare_process,
    wished,
)

PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")


def machine(value: dict[str, Any]) -> dict[str, Any]:
    """Resolve device, precision, threads and ``quantizer``; return them, versions and hardware."""
    quantize, quantizer = value.get("quantize"), None
    try:
        device = resolve_device(value["device"])
        if quantize is not None:
            quantizer = quantization.resolve(quantize, value["quantizer"])
    except BakeoffError as error:
        return {"error": error.to_json()}
    packages = PACKAGES if quantizer is None else (*PACKAGES, quantizer)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = value["threads"] or max(1, (cores or 1) // value["workers"])
    return {
        "device": device,
        "precision": resolve_precision(value["precision"], device),
        "threads": threads,
        "hardware": torch.cuda.get_device_name(device) if device != "cpu" else _cpu_name(),
        "quantizer": quantizer,
        "versions": {p: importlib.metadata.version(p) for p in packages}
        | {"bakeoff": bakeoff.__version__, "python": platform.python_version()},
    }


def doctor(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``machine`` with each precision's measured matmul rate and the engine's switches."""
    found = machine(value)
    torch.set_num_threads(found["threads"])
    rates = {
        "fp32": profiling.matmul_gflops(torch.float32, found["device"]),
        "bf16": profiling.matmul_gflops(torch.bfloat16, found["device"]),
    }
    switches = explain(found["device"], found["precision"])
    return {
        **found,
        "matmul_gflops": rates,
        "engine": {name: e._asdict() for name, e in switches.items()},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def check(value: dict[str, Any]) -> dict[str, Any]:
    """Check every method's arguments against PEFT and the base's real modules; tokenise the data.

    Returns ``{"error": {code, cause, try, exit} | None, "faults": [...]}``: what the user must mend
    before anything is trained, and faults of base and tokens, fatal or not. A method that PEFT
    cannot put on this base is found by its cost probe and becomes a row of the report.
    """
    segment = Segment.from_json(value)
    conditions = segment.trials[0].conditions
    try:
        prepare_process(conditions)
        for trial in segment.trials:
            check_config(trial.method, trial.config)
        task = make_task(conditions)
        base: Any = load_base(conditions, task, segment.base_path, 0)
        _refuse_broken_weights(base)
        for trial in segment.trials:
            targets = trial.config.get("target_modules")
            if isinstance(targets, list):
                check_targets(trial.method.name, base, targets)
        tokenizer = load_tokenizer(segment.base_path, conditions.revision, conditions.trusted)
        data, limits = Path(segment.folder) / "data", token_checks.Base.of(base)
        faults = token_checks.check(data, task, tokenizer, limits)
        shape = Shape(base.config, task.task_type, task.heads)
        if not any(fault.fatal for fault in faults):
            _try_metric(segment, task)
        faults += tied_weights.check(segment.trials, base, shape)
    except BakeoffError as error:
        return {"error": error.to_json()}
    except Exception as error:  # whatever a loader raises for broken files
        if disk_full.full(error):
            raise
        return {"error": _not_loadable(segment.base_path, error).to_json()}
    return {"error": None, "faults": [fault.to_json() for fault in faults]}


def _not_loadable(path: str, error: Exception) -> PreflightError:
    """Build the error for a base that its loader raised of, whatever that was."""
    hint = "load it with plain transformers first; `bakeoff doctor` shows versions."
    if not Path(path).is_dir():
        hint = (
            "check its id and `revision` under [base]; `hf auth login`, if it is private or gated; "
            f"without a network, `hf download {path}` beforehand."
        )
    cause = f"The base cannot be loaded: {type(error).__name__}: {error}"
    return PreflightError("base-not-loadable", cause, hint)


def _refuse_broken_weights(base: torch.nn.Module) -> None:
    """Refuse a base some of whose weights are no numbers: every trial on it would diverge.

    Raises:
        PreflightError: ``base-not-finite``.
    """
    for name, weights in base.named_parameters():
        if weights.is_floating_point() and not bool(torch.isfinite(weights).all()):
            raise PreflightError(
                "base-not-finite",
                f"The base's weights '{name}' hold NaN or infinite numbers.",
                "download the base again; fp16 weights may have overflowed where they were saved.",
            )


def _try_metric(segment: Segment, task: Task) -> None:
    """Score the references of validation and test against themselves and against no answer.

    Raises:
        MetricError: on an item that the metric cannot score, whatever the answer.
    """
    metric = describe.load(segment.trials[0].conditions, Path(segment.folder))
    if metric.of_losses:
        return
    for split in ("validation", "test"):
        rows = read_rows(Path(segment.folder) / "data" / f"{split}.jsonl")
        references = task.references(rows)
        metric.score(references, references, split)
        metric.score([""], references[:1], split)


def probe(value: dict[str, Any]) -> dict[str, Any]:
    """Measure one method's step time and memory; never raises: a failure is a cost row."""
    segment = Segment.from_json(value)
    trial = segment.trials[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            cost = _probe(segment)
            return _with_latency(cost, segment).to_json()
    except Exception as error:  # same rule as a segment: a failure is a result
        if disk_full.full(error):
            raise
        status = classify_failure(error)
        return Cost(trial.method.name, status, describe_failure(error)).to_json()


def _probe(segment: Segment) -> Cost:
    trial = segment.trials[0]
    c = trial.conditions
    prepare_process(c)
    task = make_task(c)
    data = Path(segment.folder) / "data"
    decision = _decide(segment, data)
    token_bytes = _token_bytes(segment, decision.switches)
    load_base(c, task, segment.base_path, trial.seed)  # first load: allocator and caches warm
    base = load_base(c, task, segment.base_path, trial.seed)
    profiling.settle()
    base_bytes = _in_use(c.device)
    del base
    profiling.settle()
    bench = build([trial], segment.base_path, data, decision.switches)
    examples = bench.examples("train")
    _refuse_long_prompts(bench, examples)
    profiling.settle()
    bench.feed.rescue = may_rescue(segment)
    stepper = bench.stepper()
    bench.model.train()
    batches = _fitting(bench, stepper, examples)
    cost = profiling.measure_steps(
        lambda i: stepper.step(min(i, c.steps - 1), batches[i]), c.device
    )
    if stepper.idle(0):
        raise Incompatible(UNMOVED.format(steps=len(batches)))
    _try_evaluation(bench)
    timed = batches[profiling.WARM_UP_STEPS :]
    tokens = sum(sum(b.n_tokens) for b in timed) / len(timed)
    on_cpu = c.device == "cpu"
    peak = cost.peak_bytes
    if on_cpu and peak is not None and base_bytes is not None:
        peak = max(0, peak - base_bytes)
    return Cost(
        method=trial.method.name,
        status=Status.DONE,
        trainable_parameters=bench.lanes.stack.values.shape[1],
        train_tokens_per_second=1000 * tokens / cost.milliseconds,
        step_milliseconds=cost.milliseconds,
        train_peak_bytes=peak,
        base_bytes=base_bytes,
        memory_kind="rss_above_base" if on_cpu else "device",
        steps=cost.steps,
        tokens_per_step=tokens,
        engine={
            "switches": dataclasses.asdict(bench.feed.in_use),
            "reasons": decision.reasons,
            "token_bytes": token_bytes,
            "pass_tokens": bench.feed.pass_tokens,
            "rescue": bench.feed.rescue,
        },
    )


def _with_latency(cost: Cost, segment: Segment) -> Cost:
    """Add what an example takes; that stays unknown where plain PEFT cannot do it here.

    It may not fit in memory without accelerators, or what is merged may not run on a rounded base.
    """
    free_memory()
    data = Path(segment.folder) / "data"
    try:
        found = latency.measured(segment.trials[0], segment.base_path, data)
    except Exception as error:  # the method trains, whatever this is
        if disk_full.full(error):
            raise
        return cost
    return dataclasses.replace(
        cost,
        inference_milliseconds=found.apart,
        inference_merged_milliseconds=found.merged,
    )


def _refuse_long_prompts(bench: Bench, examples: Sequence[Example]) -> None:
    """Hold virtual tokens, and the longest row behind them, against the base's positions.

    Raises:
        Incompatible: they are more.
    """
    virtual = bench.virtual_tokens
    longest = max(len(e.tokens) for e in examples)
    positions = token_checks.Base.of(bench.model).positions
    if virtual and positions is not None and virtual + longest > positions:
        raise Incompatible(
            f"its {virtual} virtual tokens and a row of {longest} are more than the base's "
            f"{positions} positions"
        )


def _try_evaluation(bench: Bench) -> None:
    """Evaluate the longest validation row, and read the longest answer: before any trial.

    Raises:
        Incompatible: not even one fits beside the trained tensors.
    """
    longest = max(bench.examples("validation"), key=lambda e: len(e.tokens))
    what = f"row of {len(longest.tokens):,} tokens can be evaluated"
    try:
        summed_losses(bench, [longest])
        what = "answer of full length can be generated"
        read_longest_answer(bench, token_checks.Base.of(bench.model).positions)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        why = f"not even one {what} in memory: {first_line(error)}"
        raise Incompatible(why) from error


def _fitting(bench: Bench, stepper: Stepper, examples: Sequence[Example]) -> list[StepBatch]:
    """Return the steps to time, in passes that fit in memory; what is graphed is captured.

    Where nothing is graphed, a step of the longest examples is what must fit.
    """
    count, seeds = profiling.WARM_UP_STEPS + profiling.TIMED_STEPS, [t.seed for t in bench.trials]
    while True:
        batches = list(islice(bench.feed.training(examples, seeds), count))
        graphs = bench.feed.switches.graphs
        try:
            for batch in batches if graphs else [bench.feed.longest(examples)]:
                stepper.step(0, batch)
            return batches
        except RuntimeError as error:
            if not out_of_memory(error) or not bench.feed.shrink():
                raise
        stepper.forget_graphs(for_good=True)
        free_memory()


def _decide(segment: Segment, data: Path) -> Decision:
    """Return which switches hold for a method; ask first whether it trains on a quantised base.

    Raises:
        Incompatible: it does not train on a quantised base.
    """
    trial, c = segment.trials[0], segment.trials[0].conditions
    switches, reasons = wished(segment)
    if c.quantize is not None and c.quantizer is not None:
        why = refusal(trial.method, c.quantize, c.quantizer)
        if why is not None:
            raise Incompatible(f"it does not train on a base in {c.quantize}: {why}")
    try:
        found = decide(trial, segment.base_path, data, switches)
    except Exception as error:  # whatever PEFT or the package raises of packed weights
        if c.quantize is None or out_of_memory(error) or isinstance(error, Incompatible):
            raise
        why = f"its first step on the base in {c.quantize} fails: {first_line(error)}"
        raise Incompatible(why) from error
    return found._replace(reasons={**reasons, **found.reasons})


def _token_bytes(segment: Segment, switches: Switches) -> float | None:
    """Return what one more packed token takes in a pass: the slope from one lane to two.

    None where lanes do not ride, two do not fit, or the difference drowns in the allocator's
    rounding.
    """
    if not switches.lanes:
        return None
    try:
        return _slope(segment, switches)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    free_memory()
    return None


def _slope(segment: Segment, switches: Switches) -> float | None:
    trial = segment.trials[0]
    device = trial.conditions.device
    plainer = dataclasses.replace(switches, compile=False, graphs=False)
    peaks, tokens = [], 0
    for lanes in (1, 2):
        bench = build([trial] * lanes, segment.base_path, Path(segment.folder) / "data", plainer)
        stepper = bench.stepper()
        bench.model.train()
        batch = next(bench.feed.training(bench.examples("train"), [trial.seed] * lanes))
        stepper.step(0, batch)
        profiling.settle()
        before = _in_use(device)
        profiling.reset_peak(device)
        stepper.step(0, batch)
        peak = profiling.peak_bytes(device)
        if before is None or peak is None:
            return None
        peaks.append(peak - before)
        tokens = batch.slots // lanes
        del bench, stepper
        free_memory()
    slope = (peaks[1] - peaks[0]) / tokens
    return slope if slope > 0 else None


def _in_use(device: str) -> int | None:
    if device == "cpu":
        return profiling.resident_bytes()
    return int(torch.cuda.memory_allocated(device))
