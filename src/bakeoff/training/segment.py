"""run_segment: train a group of trials from one step to another, score them, save them.

The unit of work that an executor carries to a worker. Whatever happens becomes a ``TrialResult``
with a status and a reason; a full disk is nobody's, and stops the segment; a lost GPU ends the
worker, and the executor's outcome tells of it. It writes only inside ``trials/<id>`` and seals the
folder last, with the hashes of all its files, so that a half-written trial is never taken for a
finished one, and a sealed one is never written again. A segment that ends at a rung leaves the
trial's state there, and the next one starts from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bakeoff.core import disk_full, trial_dir
from bakeoff.core.errors import BakeoffError
from bakeoff.core.redact import redact
from bakeoff.core.results import CurvePoint, SegmentResult, SplitScores, Status, TrialResult
from bakeoff.core.trial import Segment
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import is_device_lost, is_out_of_memory
from bakeoff.engine.loop import LossReading, Pause, Stepper, reading_steps, train
from bakeoff.methods.hook import Incompatible, SaveContext
from bakeoff.metrics.run import MetricError
from bakeoff.tasks._base import Example
from bakeoff.training import checkpoints, forgetting
from bakeoff.training.evaluate import item_losses, score_split
from bakeoff.training.setup import (TrainingSetup, build_setup, prepare_process)

NO_GRADIENT = "no gradient reached any of its weights in {steps} steps: it is the untouched base"


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Run a segment given and returned as JSON values: what executors call."""
    result = run_segment(Segment.from_json(value))
    return {"results": [r.to_json() for r in result.results], "disk_full": result.disk_full}


def run_segment(segment: Segment) -> SegmentResult:
    """Train and score every trial of the group; raises only what ends its process.

    Trials that cannot share a base, or of which one brings the others down, run one by one. Where
    the disk is full there are no results, but what it said. An error that took the GPU from this
    process is raised: the executor replaces the worker, and the trials run again in another.
    """
    try:
        return SegmentResult(tuple(_train_trials(segment)))
    except Exception as error:
        said = disk_full.disk_full_message(error)
        if said is None:
            raise
        return SegmentResult((), said)


def _train_trials(segment: Segment) -> Iterator[TrialResult]:
    group, folder = segment.trials, Path(segment.folder) / "trials"
    try:
        results = [_train_single(segment)] if len(group) == 1 else _train_group(segment)
    except Exception as error:  # which trial it was is found out when each runs alone
        if disk_full.disk_full_message(error) or is_device_lost(error):
            raise
        why = f"trained alone, not in lanes: {describe_failure(error).splitlines()[0]}"
        alone = (_train_single(dataclasses.replace(segment, trials=(trial,))) for trial in group)
        results = [dataclasses.replace(r, warnings=(*r.warnings, why)) for r in alone]
    for r in results:
        yield r if r.status is Status.STOPPED else write_result(r, folder / r.trial_id)


def classify_failure(error: BaseException) -> Status:
    """Return the status that an exception in a trial means."""
    if isinstance(error, Incompatible):
        return Status.INCOMPATIBLE
    if is_out_of_memory(error):
        return Status.OUT_OF_MEMORY
    return Status.FAILED


def describe_failure(error: BaseException) -> str:
    """Return the reason a user reads: the error's own words, its type where they need it."""
    if isinstance(error, Incompatible):
        return redact(str(error))
    if isinstance(error, BakeoffError):
        return redact(f"[{error.code}] {error.cause}")
    return redact(f"{type(error).__name__}: {error}")


def _train_group(segment: Segment) -> list[TrialResult]:
    with _record_warnings() as heard:
        results = _train_and_score(segment, [[] for _ in segment.trials])
    return [_add_warnings(r, heard) for r in results]


def _train_single(segment: Segment) -> TrialResult:
    started = time.perf_counter()
    curve: list[CurvePoint] = []
    with _record_warnings() as heard:
        try:
            (result,) = _train_and_score(segment, [curve])
        except Exception as error:  # a failure is a result: whatever it is, the study goes on
            if disk_full.disk_full_message(error) or is_device_lost(error):
                raise  # but this is none of the trial's, or not to be gone on from
            status = classify_failure(error)
            result = TrialResult(
                trial_id=segment.trials[0].id,
                status=status,
                reason=describe_failure(error),
                traceback=redact(traceback.format_exc()) if status is Status.FAILED else None,
                curve=tuple(curve),
                train_seconds=time.perf_counter() - started,
            )
    return _add_warnings(result, heard)


@contextlib.contextmanager
def _record_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        # deprecations inside a library are its authors' business, not the user's
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # PEFT's list of layer classes holds no norms; that it wraps them rightly is tested
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        yield heard


def _add_warnings(result: TrialResult, heard: Sequence[warnings.WarningMessage]) -> TrialResult:
    said = tuple(dict.fromkeys(redact(str(w.message)) for w in heard))
    return dataclasses.replace(result, warnings=said)


def _train_and_score(segment: Segment, curves: list[list[CurvePoint]]) -> list[TrialResult]:
    """Train all trials in lanes; ``curves`` takes each one's points as they come."""
    started, trials = time.perf_counter(), segment.trials
    prepare_process(trials[0].conditions)
    folder = Path(segment.folder)
    engine = segment.engine or {}
    switches = Switches(**engine["switches"]) if engine else None
    bench = build_setup(trials, segment.base_path, folder / "data", switches)
    bench.fit_memory(engine)
    examples, validation = bench.examples("train"), bench.examples("validation")
    stepper = bench.stepper()
    before, unread = _resume(bench, stepper, segment)
    for curve, so_far in zip(curves, before, strict=True):
        curve.extend(so_far.curve if so_far else ())
    run = TrainingLog(bench, curves, time.perf_counter())
    c = trials[0].conditions
    seeds = [t.seed for t in trials]
    batches = run.counted(bench.feed.training(examples, seeds, segment.start))
    readings = {*reading_steps(c.steps, c.validations), segment.stop}
    pause = train(
        stepper, batches, (segment.start, segment.stop), sorted(readings),
        lambda reading: run.read(reading, validation), bench.feed.halve, unread,
    )  # fmt: skip
    trained = time.perf_counter()
    if pause is not None:
        run.pause(pause)
    ends, final = segment.stop == c.steps and pause is None, trials[0].phase == "final"
    losses = [curve[-1].validation_loss if curve else None for curve in curves]
    splits = _score(bench, losses, ends, segment.scored) if pause is None else [{} for _ in trials]
    forgotten = forgetting.try_measure(bench, segment.base_path) if final and ends else None
    scored = time.perf_counter()
    results = []
    for lane, trial in enumerate(trials):
        share = TrialResult(
            trial_id=trial.id,
            status=Status.DONE,
            curve=tuple(curves[lane]),
            trainable_parameters=bench.lanes.stack.values.shape[1],
            train_tokens=run.tokens[lane],
            diverged_at_step=run.diverged[lane],
            train_seconds=(trained - run.begun - run.evaluating) / len(trials),
            evaluation_seconds=(run.evaluating + scored - trained) / len(trials),
            load_seconds=(run.begun - started) / len(trials),
            lanes=len(trials),
            step=segment.stop if pause is None else pause.step,
            item_losses=tuple(run.item_losses[lane]),
            forgetting=forgotten[lane] if forgotten else None,
        )
        whole = add_earlier_totals(before[lane], share)
        if pause is not None and whole.diverged_at_step is None:
            results.append(pause_trial(bench, stepper, lane, whole, pause))
        else:
            results.append(finish_trial(bench, stepper, lane, segment, whole, splits[lane]))
    return results


def _resume(
    bench: TrainingSetup, stepper: Stepper, segment: Segment
) -> tuple[list[TrialResult | None], list[Tensor]]:
    """Put every trial where the segment starts; return what each has given so far.

    And the lanes' training losses ``[K]`` of the steps since the last reading.
    """
    if segment.start == 0:
        return [None] * len(segment.trials), []
    before: list[TrialResult | None] = []
    unread = []
    for lane, trial in enumerate(segment.trials):
        path = trial_dir.checkpoint_path(Path(segment.folder) / "trials", trial.id, segment.start)
        state = checkpoints.read(path, bench.conditions.device)
        stepper.restore(lane, state.lane, segment.start)
        bench.hook.restore(lane, state.hook)
        before.append(state.result)
        unread.append(state.unread)
    losses = [own for own in unread if own is not None]
    return before, list(torch.stack(losses, 1)) if len(losses) == len(unread) else []


def pause_trial(
    bench: TrainingSetup, stepper: Stepper, lane: int, result: TrialResult, pause: Pause
) -> TrialResult:
    """Keep the state of a trial that was stopped between two readings, to go on from there."""
    result = dataclasses.replace(result, status=Status.STOPPED, item_losses=())
    state = checkpoints.Checkpoint(
        stepper.state(lane), bench.hook.state(lane), result, pause.losses[:, lane].clone()
    )
    trials = bench.data.parent / "trials"
    checkpoints.keep(trial_dir.checkpoint_path(trials, result.trial_id, pause.step), state)
    return result


def add_earlier_totals(before: TrialResult | None, now: TrialResult) -> TrialResult:
    """Return a result with the tokens and seconds of the segments before it."""
    if before is None:
        return now
    return dataclasses.replace(
        now,
        train_tokens=(before.train_tokens or 0) + (now.train_tokens or 0),
        train_seconds=(before.train_seconds or 0) + (now.train_seconds or 0),
        evaluation_seconds=(before.evaluation_seconds or 0) + (now.evaluation_seconds or 0),
        load_seconds=(before.load_seconds or 0) + (now.load_seconds or 0),
    )


def finish_trial(
    bench: TrainingSetup,
    stepper: Stepper,
    lane: int,
    segment: Segment,
    result: TrialResult,
    splits: dict[str, SplitScores] | MetricError,
) -> TrialResult:
    """Return a trial's result where its segment ends: diverged, at a rung, or done and saved.

    One whose answers the metric failed on failed, and so did one that learnt nothing.
    """
    if result.diverged_at_step is not None:
        reason = (
            "the training loss or its gradient was not finite, or absurd, "
            f"at step {result.diverged_at_step}"
        )
        return dataclasses.replace(
            result, status=Status.DIVERGED, reason=reason, step=result.diverged_at_step
        )
    if not all(map(math.isfinite, result.item_losses)):
        reason = f"the validation loss was not finite at step {segment.stop}"
        return dataclasses.replace(
            result, status=Status.DIVERGED, reason=reason, diverged_at_step=segment.stop,
            item_losses=(),
        )  # fmt: skip
    if stepper.idle(lane):
        reason = NO_GRADIENT.format(steps=segment.stop)
        return dataclasses.replace(result, status=Status.FAILED, reason=reason)
    if isinstance(splits, MetricError):
        reason = describe_failure(splits)
        return dataclasses.replace(result, status=Status.FAILED, reason=reason)
    result = dataclasses.replace(result, splits=splits)
    trial, trials = segment.trials[lane], Path(segment.folder) / "trials"
    if segment.stop < bench.conditions.steps:
        result = dataclasses.replace(result, status=Status.STOPPED)
        state = checkpoints.Checkpoint(stepper.state(lane), bench.hook.state(lane), result)
        checkpoints.keep(trial_dir.checkpoint_path(trials, trial.id, segment.stop), state)
        return result
    saved = _save(bench, lane, trials / trial.id)
    return dataclasses.replace(result, adapter_bytes=saved)


class TrainingLog:
    """What is noted down while lanes train."""

    def __init__(self, bench: TrainingSetup, curves: list[list[CurvePoint]], begun: float) -> None:
        self.bench = bench
        self.curves = curves
        self.begun = begun
        self.evaluating = 0.0
        self.tokens = [0] * len(bench.trials)
        self.diverged: list[int | None] = [None] * len(bench.trials)
        self.item_losses: list[list[float]] = [[] for _ in bench.trials]
        """Of the last reading, for each lane that lives."""

    def counted(self, batches: Iterator[StepBatch]) -> Iterator[StepBatch]:
        """Count each lane's tokens as its batches go by."""
        for step in batches:
            lengths = [n for p in step.passes for n in p.batch.lengths]
            rows = len(lengths) // len(self.tokens)
            for lane in range(len(self.tokens)):
                self.tokens[lane] += sum(lengths[lane * rows : (lane + 1) * rows])
            yield step

    def pause(self, pause: Pause) -> None:
        """Note which lanes have diverged by now."""
        self.diverged = list(pause.diverged)

    def read(self, reading: LossReading, validation: Sequence[Example]) -> None:
        """Add a point to the curve of each lane that lives."""
        started = time.perf_counter()
        losses = item_losses(self.bench, validation)
        for lane, (curve, at) in enumerate(zip(self.curves, reading.diverged, strict=True)):
            if at is None:
                mean = float(losses[lane].mean())
                curve.append(CurvePoint(reading.step, reading.train_losses[lane], mean))
                self.item_losses[lane] = losses[lane].tolist()
        self.diverged = list(reading.diverged)
        self.evaluating += time.perf_counter() - started


def _score(
    bench: TrainingSetup, losses: Sequence[float | None], ends: bool, scored: bool
) -> list[dict[str, SplitScores] | MetricError]:
    """Score test in final trials, validation by the metric where the segment says so."""
    plain = [SplitScores((), (), loss) for loss in losses]
    if bench.trials[0].phase != "final":
        found = score_split(bench, "validation", losses) if scored else plain
        return [s if isinstance(s, MetricError) else {"validation": s} for s in found]
    if not ends:
        return [{"validation": s} for s in plain]
    tested = zip(score_split(bench, "test", [None] * len(plain)), plain, strict=True)
    return [t if isinstance(t, MetricError) else {"test": t, "validation": s} for t, s in tested]


def _save(bench: TrainingSetup, lane: int, folder: Path) -> int | None:
    """Save a finalist's weights in the method's own format; return the bytes of its tensors.

    A sealed folder holds the weights that its scores were taken from, and stays: its group is
    trained once more for the sake of another trial.
    """
    if bench.trials[lane].phase != "final":
        return None
    target = folder / bench.hook.saved_as
    if trial_dir.read_finished(folder) is None:
        trial_dir.remove_manifest(folder)
        if target.exists():
            shutil.rmtree(target)
        bench.lanes.alone(lane)
        start = bench.starts[lane].trained if bench.starts else None
        bench.hook.save(bench.model, target, SaveContext(bench.conditions.base, lane, start))
    return sum(p.stat().st_size for p in target.rglob("*.safetensors"))


def write_result(result: TrialResult, folder: Path) -> TrialResult:
    """Write the result durably and seal its folder.

    A folder that cannot be written is no failure of the trial: the parent has its result in hand.
    """
    try:
        if trial_dir.read_finished(folder) is None:
            trial_dir.remove_manifest(folder)
            folder.mkdir(parents=True, exist_ok=True)
            trial_dir.write_manifest(folder, result)
    except OSError as error:
        if disk_full.disk_full_message(error):
            raise
        warning = f"the trial's folder could not be written: {error}"
        return dataclasses.replace(result, warnings=(*result.warnings, warning))
    return result
