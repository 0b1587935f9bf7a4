"""run_segment: train a group of trials from one step to another, score them, save them.

The unit of work that an executor carries to a worker. It never raises: whatever happens becomes a
``TrialResult`` with a status and a reason. It writes only inside ``trials/<id>`` and marks the
folder COMPLETE last, after the hashes of all its files, so that a half-written trial is never taken
for a finished one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from bakeoff.assemble import Bench, build, mean_loss, prepare_process, score_split
from bakeoff.data import sha256_of
from bakeoff.engine.loop import Diverged, Reading, reading_steps, train
from bakeoff.errors import BakeoffError
from bakeoff.methods.hooks import Incompatible, trainable
from bakeoff.results import CurvePoint, SegmentResult, SplitScores, Status, TrialResult
from bakeoff.trial import Segment, Trial

COMPLETE = "COMPLETE.json"
RESULT = "result.json"


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Run a segment given and returned as JSON values: what executors call."""
    result = run_segment(Segment.from_json(value))
    return {"results": [r.to_json() for r in result.results]}


def run_segment(segment: Segment) -> SegmentResult:
    """Train and score every trial of the group; never raises."""
    return SegmentResult(tuple(_one(t, segment) for t in segment.trials))


def classify_failure(error: BaseException) -> Status:
    """Return the status that an exception in a trial means."""
    if isinstance(error, Incompatible):
        return Status.INCOMPATIBLE
    if isinstance(error, Diverged):
        return Status.DIVERGED
    text = str(error).lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return Status.OUT_OF_MEMORY
    return Status.FAILED


def describe_failure(error: BaseException) -> str:
    """Return the reason a user reads: the error's own words, its type where they need it."""
    if isinstance(error, (Incompatible, Diverged)):
        return str(error)
    if isinstance(error, BakeoffError):
        return f"[{error.code}] {error.cause}"
    return f"{type(error).__name__}: {error}"


def _one(trial: Trial, segment: Segment) -> TrialResult:
    started = time.perf_counter()
    curve: list[CurvePoint] = []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        # deprecations inside a library are its authors' business, not the user's
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            result = _train_and_score(trial, segment, curve, started)
        except Exception as error:  # a failure is a result: whatever it is, the study goes on
            status = classify_failure(error)
            result = TrialResult(
                trial_id=trial.id,
                status=status,
                reason=describe_failure(error),
                traceback=traceback.format_exc() if status is Status.FAILED else None,
                curve=tuple(curve),
                diverged_at_step=error.step if isinstance(error, Diverged) else None,
                train_seconds=time.perf_counter() - started,
            )
    said = tuple(dict.fromkeys(str(w.message) for w in heard))
    result = dataclasses.replace(result, warnings=said)
    return _keep(result, Path(segment.folder) / "trials" / trial.id)


def _train_and_score(
    trial: Trial, segment: Segment, curve: list[CurvePoint], started: float
) -> TrialResult:
    prepare_process(trial.conditions)
    folder = Path(segment.folder)
    bench = build(trial, segment.base_path, folder / "data")
    examples = bench.task.encode(bench.tokenizer, bench.rows("train"))
    validation = bench.task.encode(bench.tokenizer, bench.rows("validation"))
    loaded = time.perf_counter()
    evaluating = 0.0
    tokens = 0

    def on_reading(reading: Reading) -> None:
        nonlocal evaluating
        begun = time.perf_counter()
        loss = mean_loss(bench, validation)
        curve.append(CurvePoint(reading.step, reading.train_loss, loss))
        evaluating += time.perf_counter() - begun

    def counted() -> Any:
        nonlocal tokens
        for batch in bench.train_batches(examples):
            tokens += batch.n_tokens
            yield batch

    readings = reading_steps(trial.conditions.steps, trial.conditions.validations)
    train(bench.stepper(), counted(), segment.start, segment.stop, readings, on_reading)
    trained = time.perf_counter()
    splits = _score(bench, curve[-1].validation_loss if curve else None)
    scored = time.perf_counter()
    adapter_bytes = _save(bench, folder / "trials" / trial.id)
    return TrialResult(
        trial_id=trial.id,
        status=Status.DONE,
        curve=tuple(curve),
        splits=splits,
        trainable_parameters=sum(p.numel() for p in trainable(bench.model).values()),
        adapter_bytes=adapter_bytes,
        train_tokens=tokens,
        train_seconds=trained - loaded - evaluating,
        evaluation_seconds=evaluating + scored - trained,
        load_seconds=loaded - started,
    )


def _score(bench: Bench, validation_loss: float | None) -> dict[str, SplitScores]:
    splits = {}
    if bench.trial.phase == "final":
        splits["test"] = score_split(bench, "test", None)
    if bench.task.scores_validation:
        splits["validation"] = score_split(bench, "validation", validation_loss)
    else:
        splits["validation"] = SplitScores((), (), validation_loss)
    return splits


def _save(bench: Bench, folder: Path) -> int | None:
    """Save a finalist's weights in the method's own format; return the bytes of its tensors."""
    if bench.trial.phase != "final":
        return None
    target = folder / bench.hook.saved_as
    if target.exists():
        shutil.rmtree(target)
    bench.hook.save(bench.model, target, bench.conditions.base)
    return sum(p.stat().st_size for p in target.rglob("*.safetensors"))


def _keep(result: TrialResult, folder: Path) -> TrialResult:
    """Write the result durably: files first, their hashes and COMPLETE last.

    A full disk must not raise here either; the parent still gets the result in its hands.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / RESULT, json.dumps(result.to_json(), sort_keys=True))
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)
        hashes = {str(p.relative_to(folder)): sha256_of(p) for p in files}
        _write(folder / COMPLETE, json.dumps(hashes, indent=1))
    except OSError as error:
        warning = f"the trial's folder could not be written: {error}"
        return dataclasses.replace(result, warnings=(*result.warnings, warning))
    return result


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
