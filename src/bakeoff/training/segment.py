"""Train a group of trials from one step to another, score them and save them.

A segment is the unit of work that an executor gives to a worker. It writes only inside
``trials/<id>``, and writes the checksum manifest of that folder last: a partial trial is never
taken for a finished one, and a finished one is never written again. A segment that ends at a rung
leaves a checkpoint there, from which the next segment resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import BakeoffError, describe_error
from bakeoff.core.redact import redact
from bakeoff.core.results import (
    CurvePoint,
    Forgetting,
    SegmentResult,
    SplitScores,
    Status,
    TrialResult,
)
from bakeoff.core.trial import REPLICATE, Conditions, Segment
from bakeoff.core.trial_dir import TRIALS
from bakeoff.engine.accelerators import Switches, explain_failure
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import is_device_lost, is_out_of_memory
from bakeoff.engine.loop import LossReading, Pause, Stepper, reading_steps, train
from bakeoff.methods.hook import Incompatible, SaveContext
from bakeoff.metrics.run import MetricError
from bakeoff.tasks._base import Example
from bakeoff.training import checkpoints, forgetting
from bakeoff.training.checkpoints import Checkpoint
from bakeoff.training.evaluate import item_losses, score_split
from bakeoff.training.setup import TrainingSetup, build_setup, prepare_process
from bakeoff.training.setup_cache import active_setups

NO_GRADIENT = "no gradient reached any of its weights in {steps} steps: it is still the base model"
_UNSUCCESSFUL = (Status.FAILED, Status.OUT_OF_MEMORY, Status.INCOMPATIBLE)

log = logging.getLogger(__name__)

Splits = dict[str, SplitScores]
"""Scores of one trial by split."""


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Run a segment given as JSON values; return ``{"results": [...], "disk_full": text | None}``.

    This is the worker's entry point.
    """
    result = run_segment(Segment.from_json(value))
    return {"results": [r.to_json() for r in result.results], "disk_full": result.disk_full}


def run_segment(segment: Segment) -> SegmentResult:
    """Train and score every trial of the group.

    Whatever happens to a trial becomes its ``TrialResult``, with a status and a reason. Trials that
    cannot share a base model are trained one by one, and so are all of the group after an error in
    it. On a full disk there are no results, only the message.

    Raises:
        RuntimeError: the process lost its GPU. The executor replaces the worker and runs the trials
            again in the new one.
    """
    ids = ", ".join(trial.id for trial in segment.trials)
    log.info("segment start: steps %d to %d of trials %s", segment.start, segment.stop, ids)
    try:
        results = tuple(_train_trials(segment))
    except Exception as error:
        message = files.disk_full_message(error)
        if message is None:
            log.error("segment failed: trials %s: %s", ids, describe_failure(error))
            raise
        log.error("segment without results, the disk is full: trials %s: %s", ids, message)
        return SegmentResult((), message)
    for result in results:
        level = logging.WARNING if result.status in _UNSUCCESSFUL else logging.INFO
        reason = "" if result.reason is None else f": {result.reason}"
        log.log(
            level, "trial %s: %s at step %s%s", result.trial_id, result.status, result.step, reason
        )
    log.info("segment end: trials %s", ids)
    return SegmentResult(results)


def _train_trials(segment: Segment) -> Iterator[TrialResult]:
    group, folder = segment.trials, Path(segment.folder) / TRIALS
    try:
        results = [_train_single(segment)] if len(group) == 1 else _train_group(segment)
    except Exception as error:
        if files.disk_full_message(error) or is_device_lost(error):
            raise
        results = _train_each(segment, error)
    with ThreadPoolExecutor() as pool:  # hashing and syncing release Python's lock
        yield from pool.map(partial(_write_if_ended, folder), results)


def _write_if_ended(folder: Path, result: TrialResult) -> TrialResult:
    stopped = result.status is Status.STOPPED
    return result if stopped else write_result(result, folder / result.trial_id)


def _train_each(segment: Segment, error: Exception) -> list[TrialResult]:
    """Train trials one by one after an error in lanes, which does not say which trial caused it.

    An error that comes again belongs to its trial. Otherwise lanes caused it, and the results warn.
    """
    group = segment.trials
    log.warning("trials %s: an error in lanes", ", ".join(t.id for t in group), exc_info=error)
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed step
    results = [_train_single(dataclasses.replace(segment, trials=(trial,))) for trial in group]
    if any(r.status in (Status.FAILED, Status.INCOMPATIBLE) for r in results):
        return results
    why = f"trained sequentially, not in lanes: {explain_failure(error)}"
    return [dataclasses.replace(r, warnings=(*r.warnings, redact(why))) for r in results]


def classify_failure(error: BaseException) -> Status:
    """Return the status that an exception in a trial means."""
    if isinstance(error, Incompatible):
        return Status.INCOMPATIBLE
    if is_out_of_memory(error):
        return Status.OUT_OF_MEMORY
    return Status.FAILED


def describe_failure(error: BaseException, conditions: Conditions | None = None) -> str:
    """Return the reason that users read: the error's message, with its type or code.

    If memory ran out under ``conditions``, it names the setting that needs less.
    """
    if isinstance(error, Incompatible):
        return redact(str(error))
    if isinstance(error, BakeoffError):
        return redact(f"[{error.code}] {error.cause}")
    text = describe_error(error)
    if conditions is not None and is_out_of_memory(error):
        length = conditions.task_options["max_length"]
        text += f" (task.max_length is {length}; a smaller one needs less memory)"
    return redact(text)


def _train_group(segment: Segment) -> list[TrialResult]:
    """Train the trials in lanes; any error is raised."""
    with _record_warnings() as caught:
        results = _train_and_score(segment, [[] for _ in segment.trials])
    return [_add_warnings(r, caught) for r in results]


def _train_single(segment: Segment) -> TrialResult:
    """Train the one trial of a segment; an error becomes its result."""
    started = time.perf_counter()
    curve: list[CurvePoint] = []
    with _record_warnings() as caught:
        try:
            (result,) = _train_and_score(segment, [curve])
        except Exception as error:  # a failed trial is a result, and the study continues
            if files.disk_full_message(error) or is_device_lost(error):
                raise  # not caused by the trial, and the process cannot continue
            status = classify_failure(error)
            result = TrialResult(
                trial_id=segment.trials[0].id,
                status=status,
                reason=describe_failure(error, segment.trials[0].conditions),
                traceback=redact(traceback.format_exc()) if status is Status.FAILED else None,
                curve=tuple(curve),
                train_seconds=time.perf_counter() - started,
            )
    return _add_warnings(result, caught)


@contextlib.contextmanager
def _record_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        # deprecations inside a library concern its authors, not the user
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # PEFT's list of layer classes holds no norms; a test covers that it wraps them correctly
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        yield caught


def _add_warnings(result: TrialResult, caught: Sequence[warnings.WarningMessage]) -> TrialResult:
    texts = tuple(dict.fromkeys(redact(str(w.message)) for w in caught))
    return dataclasses.replace(result, warnings=texts)


def _train_and_score(segment: Segment, curves: list[list[CurvePoint]]) -> list[TrialResult]:
    """Train and score all trials in lanes; append their points to ``curves`` as they are measured.

    The lists belong to the caller, who keeps the points of a trial that fails on the way.
    """
    started = time.perf_counter()
    setup = _set_up(segment)
    validation, batches = setup.examples("validation"), _training_batches(setup, segment)
    stepper = setup.stepper()
    earlier, pending_losses = _resume(setup, stepper, segment)
    for curve, result in zip(curves, earlier, strict=True):
        curve.extend(result.curve if result else ())
    training = TrainingLog(setup, curves, started)
    if segment.initial and segment.start == 0:
        training.read_initial(validation)
    c = setup.conditions
    pause = train(
        stepper,
        training.count_tokens(batches),
        (segment.start, segment.stop),
        sorted({*reading_steps(c.steps, c.validations), segment.stop}),
        lambda reading: training.read(reading, validation),
        setup.split_last_step,
        pending_losses,
    )
    training.end(pause)
    scores = _score_lanes(setup, segment, training, pause)
    results = _collect(setup, stepper, segment, training, pause, earlier, scores)
    setup.keep_model()
    return results


def _set_up(segment: Segment) -> TrainingSetup:
    """Prepare the process; return the group's base model, methods and data."""
    prepare_process(segment.trials[0].conditions)
    engine = segment.engine or {}
    switches = Switches(**engine["switches"]) if engine else None
    data = Path(segment.folder) / "data"
    setup = build_setup(segment.trials, segment.base_path, data, switches, active_setups())
    setup.fit_memory(engine)
    setup.may_read_test = segment.scores_test
    return setup


def _training_batches(setup: TrainingSetup, segment: Segment) -> Iterator[StepBatch]:
    seeds = [t.seed for t in segment.trials]
    examples, builder = setup.examples("train"), setup.batch_builder
    # by the segment's end alone: a segment that is resumed must have the shapes it had before
    return builder.training_steps(examples, seeds, segment.start, segment.stop)


class LaneScores(NamedTuple):
    """Scores of each lane at the end of a segment, and the time when they were complete."""

    splits: list[Splits | MetricError]
    forgetting: list[Forgetting | None] | None
    ended: float


def _score_lanes(
    setup: TrainingSetup, segment: Segment, training: TrainingLog, pause: Pause | None
) -> LaneScores:
    """Score what the segment asks for; nothing if it was paused between two validations."""
    if pause is not None:
        return LaneScores([{} for _ in segment.trials], None, time.perf_counter())
    log.info("scoring at step %d, trials: %d", segment.stop, len(segment.trials))
    ends = segment.stop == setup.conditions.steps
    losses = [curve[-1].validation_loss if curve else None for curve in training.curves]
    tested = ends and segment.scores_test
    splits = _score(setup, losses, tested, segment.scored and segment.start < segment.stop)
    lost = forgetting.try_measure(setup, segment.base_path) if tested else None
    log.info("scoring ended")
    return LaneScores(splits, lost, time.perf_counter())


def _collect(
    setup: TrainingSetup, stepper: Stepper, segment: Segment, training: TrainingLog,
    pause: Pause | None, earlier: Sequence[TrialResult | None], scores: LaneScores,
) -> list[TrialResult]:  # fmt: skip
    """Return each lane's result, after the weights and checkpoints are saved.

    Lanes share their steps, so each has an equal share of the group's seconds.
    """
    count = len(segment.trials)
    results = []
    for lane, trial in enumerate(segment.trials):
        now = TrialResult(
            trial_id=trial.id,
            status=Status.DONE,
            curve=tuple(training.curves[lane]),
            trainable_parameters=setup.lanes.stack.values.shape[1],
            train_tokens=training.tokens[lane],
            diverged_at_step=training.diverged[lane],
            train_seconds=training.train_seconds / count,
            evaluation_seconds=(training.evaluating + scores.ended - training.trained) / count,
            load_seconds=(training.loaded - training.started) / count,
            lanes=count,
            step=segment.stop if pause is None else pause.step,
            item_losses=tuple(training.item_losses[lane]),
            forgetting=scores.forgetting[lane] if scores.forgetting else None,
            initial_losses=tuple(training.initial_losses[lane]),
        )
        total = add_earlier_totals(earlier[lane], now)
        before = earlier[lane]
        if before is not None and segment.start == segment.stop:
            total = dataclasses.replace(total, splits=before.splits)  # scored at the last step
        if pause is not None and total.diverged_at_step is None:
            results.append(dataclasses.replace(total, status=Status.STOPPED, item_losses=()))
        else:
            splits = scores.splits[lane]
            results.append(finish_trial(setup, stepper, lane, segment, total, splits))
    checkpoints.save_all(_checkpoints(setup, stepper, results, pause))
    return results


def _checkpoints(
    setup: TrainingSetup, stepper: Stepper, results: Sequence[TrialResult], pause: Pause | None
) -> Iterator[tuple[Path, Checkpoint]]:
    """Yield the checkpoint, with its path, of each trial that has stopped and may go on."""
    trials = setup.data.parent / TRIALS
    for lane, result in enumerate(results):
        if result.status is not Status.STOPPED or result.step is None:
            continue
        # nothing is trained after the last step: its checkpoint holds the weights alone
        ends = result.step == setup.conditions.steps
        state = stepper.values(lane) if ends else stepper.state(lane)
        losses = None if pause is None else pause.losses[:, lane].clone()
        checkpoint = Checkpoint(state, setup.hook.state(lane), result, losses)
        yield trial_dir.checkpoint_path(trials, result.trial_id, result.step), checkpoint


def _resume(
    setup: TrainingSetup, stepper: Stepper, segment: Segment
) -> tuple[list[TrialResult | None], list[Tensor]]:
    """Restore every lane at the first step of the segment.

    Returns each trial's result so far, and the training losses ``[K]`` of each step since the last
    validation.
    """
    if segment.start == 0:
        return [None] * len(segment.trials), []
    earlier: list[TrialResult | None] = []
    pending = []
    folder = Path(segment.folder) / TRIALS
    paths = [trial_dir.checkpoint_path(folder, t.id, segment.start) for t in segment.trials]
    loaded = checkpoints.load_all(paths, setup.conditions.device)
    for lane, (trial, checkpoint) in enumerate(zip(segment.trials, loaded, strict=True)):
        stepper.restore(lane, checkpoint.lane, segment.start)
        setup.hook.restore(lane, checkpoint.hook)
        earlier.append(checkpoint.result)
        pending.append(checkpoint.pending_losses)
        log.info("trial %s: resumed from the checkpoint at step %d", trial.id, segment.start)
    # lanes of a group stop together: all have pending losses, or none (at a rung)
    losses = [lane_losses for lane_losses in pending if lane_losses is not None]
    return earlier, list(torch.stack(losses, 1)) if len(losses) == len(pending) else []


def add_earlier_totals(before: TrialResult | None, now: TrialResult) -> TrialResult:
    """Return a result that includes the tokens and seconds of the earlier segments."""
    if before is None:
        return now
    return dataclasses.replace(
        now,
        train_tokens=(before.train_tokens or 0) + (now.train_tokens or 0),
        train_seconds=(before.train_seconds or 0) + (now.train_seconds or 0),
        evaluation_seconds=(before.evaluation_seconds or 0) + (now.evaluation_seconds or 0),
        load_seconds=(before.load_seconds or 0) + (now.load_seconds or 0),
        initial_losses=before.initial_losses or now.initial_losses,
    )


def finish_trial(
    setup: TrainingSetup,
    stepper: Stepper,
    lane: int,
    segment: Segment,
    result: TrialResult,
    splits: Splits | MetricError,
) -> TrialResult:
    """Return a trial's result at the end of its segment: diverged, failed, at a rung, or done.

    A trial fails if the metric failed on its predictions, or if no gradient reached its weights.
    """
    if result.diverged_at_step is not None:
        reason = (
            "the training loss or its gradient was not finite, or far too large, "
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
    # the last checkpoint has no moments: a segment that only scores cannot tell, nor need it
    if segment.start < segment.stop and stepper.never_updated(lane):
        reason = NO_GRADIENT.format(steps=segment.stop)
        return dataclasses.replace(result, status=Status.FAILED, reason=reason)
    if isinstance(splits, MetricError):
        reason = describe_failure(splits)
        return dataclasses.replace(result, status=Status.FAILED, reason=reason)
    result = dataclasses.replace(result, splits={**splits, **result.splits})
    trial, trials = segment.trials[lane], Path(segment.folder) / TRIALS
    ends = segment.stop == setup.conditions.steps
    if ends and segment.scores_test:
        saved = _save(setup, lane, trials / trial.id)
        return dataclasses.replace(result, adapter_bytes=saved)
    if ends and trial.phase != REPLICATE:  # trained to the end, and not scored
        return result
    log.info("trial %s: reached the rung at step %d", trial.id, segment.stop)
    return dataclasses.replace(result, status=Status.STOPPED)


class TrainingLog:
    """Measurements of a group while it trains: curves, tokens, losses and times.

    Times are readings of ``time.perf_counter``: ``started`` before the base model was loaded,
    ``loaded`` before the first step, ``trained`` after the last one. ``evaluating`` is a duration.
    """

    def __init__(
        self, setup: TrainingSetup, curves: list[list[CurvePoint]], started: float
    ) -> None:
        self.setup = setup
        self.curves = curves
        self.started = started
        self.loaded = self.trained = time.perf_counter()
        self.evaluating = 0.0
        self.tokens = [0] * len(setup.trials)
        self.diverged: list[int | None] = [None] * len(setup.trials)
        self.item_losses: list[list[float]] = [[] for _ in setup.trials]
        """Of the last validation, for each lane that has not diverged."""
        self.initial_losses: list[list[float]] = [[] for _ in setup.trials]
        """Of the validation before the first step, where it was measured."""

    @property
    def train_seconds(self) -> float:
        """Seconds of training without its validations."""
        return self.trained - self.loaded - self.evaluating

    def count_tokens(self, batches: Iterator[StepBatch]) -> Iterator[StepBatch]:
        """Yield the batches unchanged, and count each lane's tokens in them."""
        for step in batches:
            lengths = [n for p in step.passes for n in p.batch.lengths]
            rows = len(lengths) // len(self.tokens)
            for lane in range(len(self.tokens)):
                self.tokens[lane] += sum(lengths[lane * rows : (lane + 1) * rows])
            yield step

    def end(self, pause: Pause | None) -> None:
        """Record the end of training, and which lanes had diverged if it was a pause."""
        self.trained = time.perf_counter()
        if pause is not None:
            self.diverged = list(pause.diverged)
            log.info("training paused at step %d", pause.step)

    def read_initial(self, validation: Sequence[Example]) -> None:
        """Compute each lane's validation losses before the first step."""
        started = time.perf_counter()
        self.initial_losses = [losses.tolist() for losses in item_losses(self.setup, validation)]
        self.evaluating += time.perf_counter() - started

    def read(self, reading: LossReading, validation: Sequence[Example]) -> None:
        """Compute the validation loss of each lane that has not diverged; extend its curve."""
        started = time.perf_counter()
        losses = item_losses(self.setup, validation)
        for lane, (curve, at) in enumerate(zip(self.curves, reading.diverged, strict=True)):
            if at is None:
                mean = float(losses[lane].mean())
                curve.append(CurvePoint(reading.step, reading.train_losses[lane], mean))
                self.item_losses[lane] = losses[lane].tolist()
                trial_id = self.setup.trials[lane].id
                log.debug("trial %s: step %d, validation loss %g", trial_id, reading.step, mean)
        self.diverged = list(reading.diverged)
        self.evaluating += time.perf_counter() - started


def _score(
    setup: TrainingSetup, losses: Sequence[float | None], tested: bool, scored: bool
) -> list[Splits | MetricError]:
    """Score the trials on test if ``tested``, and on validation if ``scored``.

    ``losses`` are the lanes' last validation losses.
    """
    scores: list[SplitScores | MetricError] = [SplitScores((), (), loss) for loss in losses]
    if scored:
        scores = score_split(setup, "validation", losses)
    splits: list[Splits | MetricError] = [
        s if isinstance(s, MetricError) else {"validation": s} for s in scores
    ]
    if not tested:
        return splits
    on_test = zip(score_split(setup, "test", [None] * len(splits)), splits, strict=True)
    # an error on validation is that of the trial, else the one on test
    return [
        s if isinstance(s, MetricError) else t if isinstance(t, MetricError) else {**s, "test": t}
        for t, s in on_test
    ]


def _save(setup: TrainingSetup, lane: int, folder: Path) -> int:
    """Save a trial's weights in the method's own format; return the bytes of its tensors.

    A finished folder is left as it is: it holds the weights that were scored, and the group is only
    trained again because another of its trials is missing.
    """
    target = folder / setup.hook.saved_as
    if trial_dir.read_finished(folder) is None:
        trial_dir.remove_manifest(folder)
        if target.exists():
            shutil.rmtree(target)
        setup.lanes.run_single(lane)
        start = setup.starts[lane].trained if setup.starts else None
        setup.hook.save(setup.model, target, SaveContext(setup.conditions.base, lane, start))
    return sum(p.stat().st_size for p in target.rglob("*.safetensors"))


def write_result(result: TrialResult, folder: Path) -> TrialResult:
    """Write the result and the checksum manifest of its folder durably.

    If the folder cannot be written the trial still counts, with a warning: the parent process
    stores the returned result in the database.
    """
    try:
        if trial_dir.read_finished(folder) is None:
            trial_dir.remove_manifest(folder)
            folder.mkdir(parents=True, exist_ok=True)
            trial_dir.write_manifest(folder, result)
    except OSError as error:
        if files.disk_full_message(error):
            raise
        warning = f"the trial's folder could not be written: {error}"
        return dataclasses.replace(result, warnings=(*result.warnings, warning))
    return result
