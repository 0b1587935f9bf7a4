"""Make a study of imported results: trials, costs, what their tool reported, and the record.

Stands between ``results`` (the files) and ``api`` (which stores what this makes, and reads it back
as a ``StudyRecord``). Every experiment is a method of the study, under its own name, with one final
trial; nothing of it is measured here, and what the files do not tell is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError, UsageError, unknown_name
from bakeoff.core.record import ImportedScores, ImportedStudy
from bakeoff.core.results import Cost, CurvePoint, Status, TrialResult
from bakeoff.core.trial import LEARNING_RATE, Conditions, Trial
from bakeoff.integrations.peft_benchmark import import_notes, importing
from bakeoff.integrations.peft_benchmark.benchmark import (
    BAKEOFF_COSTS,
    BAKEOFF_SECTION,
    Benchmark,
    benchmark_of,
)
from bakeoff.integrations.peft_benchmark.method_entries import method_entry
from bakeoff.integrations.peft_benchmark.results import (
    NO_FILE_SIZE,
    SUCCESS,
    ResultFile,
    read_folder,
)
from bakeoff.report import write
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Writer
from bakeoff.study.storage.lock import hold_lock

MARGIN = 0.02
"""The study file's default."""
PRECISIONS = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
ROUNDING = 1e-6
"""Largest distance of score x items from a whole number that rounding explains."""
UNKNOWN_SIZE = (
    f"its file size, {NO_FILE_SIZE:,}, is what method_comparison writes where the checkpoint could "
    "not be saved: taken as unknown."
)
MEMORY_KIND = "device_reserved"


class ImportOptions(NamedTuple):
    """What the user says of an import beside the folder."""

    name: str
    control: str | None = None
    margin: float | None = None
    test_items: int | None = None


class StudyContents(NamedTuple):
    """What ``api`` stores: the study's values, its trials with their results, its costs."""

    values: dict[str, Any]
    trials: tuple[tuple[Trial, TrialResult], ...]
    costs: tuple[Cost, ...]


def build_study(folder: Path, wishes: ImportOptions) -> StudyContents:
    """Read a folder of result files and make a study of them.

    Raises:
        UsageError: ``no-hf-results``, ``unknown-experiment``, ``hf-control-unknown``,
            ``hf-test-items-unknown``, ``hf-margin``.
        PreflightError: ``hf-result-invalid`` and what else is wrong with the files.
    """
    if wishes.margin is not None and not wishes.margin > 0:
        raise UsageError("hf-margin", f"--margin {wishes.margin} is not above 0.", "--margin 0.02")
    results = read_folder(folder)
    benchmark = benchmark_of(results, wishes.test_items)
    _check_same_base(results)
    control = _control(results, benchmark, wishes.control)
    ordered = sorted(results, key=lambda result: result.name != control)
    trials = tuple(_trial(result, benchmark) for result in ordered)
    reported = {r.name: _imported_scores(r, benchmark) for r in ordered}
    differing = import_notes.differing_parameters(ordered)
    known = ImportedStudy(str(folder), benchmark.name, reported, benchmark.no_interval, differing)
    base = ordered[0].run.train_config.model_id
    values = {
        "imported": {
            **dataclasses.asdict(known),
            "name": wishes.name,
            "base": base,
            "task": benchmark.task,
            "margin": wishes.margin or MARGIN,
            "steps": trials[0][0].conditions.steps,
            "metric": dataclasses.asdict(benchmark.metric),
            "n_items": {"test": benchmark.n_test, "validation": benchmark.n_validation},
            "methods": [r.name for r in ordered],
            "warnings": import_notes.import_warnings(ordered, benchmark, differing),
            "provenance": import_notes.provenance(ordered),
        },
        "frozen": _frozen_values(ordered, trials, base),
    }
    return StudyContents(values, trials, tuple(_cost(result) for result in ordered))


def _check_same_base(results: Sequence[ResultFile]) -> None:
    bases: dict[str, ResultFile] = {}
    for result in results:
        bases.setdefault(result.run.train_config.model_id, result)
    if len(bases) > 1:
        shown = ", ".join(f"{base} ({r.path.name})" for base, r in bases.items())
        raise PreflightError(
            "hf-results-mixed",
            f"run_info.train_config.model_id is not the same in all files: {shown}.",
            "a folder for each base model: scores on different bases compare with nothing.",
        )


def _control(results: Sequence[ResultFile], benchmark: Benchmark, wished: str | None) -> str:
    names = [result.name for result in results]
    control = wished or benchmark.control
    if control in names:
        return control
    if wished is not None:
        raise unknown_name("unknown-experiment", "experiment", wished, names)
    why = "say which experiment the others are compared with"
    if benchmark.control:
        why = f"the folder has no {benchmark.control}, which {benchmark.name} is compared with"
    raise UsageError("hf-control-unknown", f"No control: {why}.", f"--control {names[0]}")


def _trial(result: ResultFile, benchmark: Benchmark) -> tuple[Trial, TrialResult]:
    config = result.run.train_config
    cosine = config.lr_scheduler == "cosine"
    decay = config.optimizer_kwargs.weight_decay
    conditions = Conditions(
        base=config.model_id,
        revision=(result.meta.get("model_info") or {}).get("sha"),
        task=benchmark.task,
        task_options={"train_config": config.model_dump(mode="json")},
        metric=benchmark.metric.name,
        data={},
        steps=config.max_steps,
        batch_size=config.batch_size,
        evaluation_batch_size=config.batch_size_eval,
        # their cosine falls from the end of the warm-up on; without one the rate never changes
        warmup=0.1 if cosine else 0.0,
        decay=0.9 if cosine else 0.0,
        weight_decay=import_notes.ADAMW_WEIGHT_DECAY if decay is None else decay,
        clip=config.grad_norm_clip,
        head_learning_rate=None,
        validations=max(1, len(result.train.metrics) - 1),
        device=str((result.meta.get("system_info") or {}).get("accelerator")),
        precision=PRECISIONS.get(config.dtype, config.dtype),
        threads=1,
    )
    setting = {LEARNING_RATE: config.optimizer_kwargs.lr}
    entry = method_entry(result.name, result.run.peft_config, config.optimizer_kwargs.lr)
    trial = Trial(entry, setting, config.seed, "final", conditions)
    return trial, _result(trial, result)


def _result(trial: Trial, result: ResultFile) -> TrialResult:
    status, reason = Status.DONE, None
    curve: list[CurvePoint] = []
    if result.train.status != SUCCESS:
        reason = result.run.error_msg or f"their run ended as `{result.train.status}`"
        out = "out of memory" in reason.lower()
        status = Status.OUT_OF_MEMORY if out else Status.FAILED
    for entry in result.train.metrics:
        step, loss = result.number(entry, "step"), result.number(entry, "train loss")
        # the last entry repeats the loss of the one before it, beside the test metric
        if step is not None and (not curve or step > curve[-1].step):
            curve.append(CurvePoint(int(step), loss, None))
    tokens = result.number(result.last, "train total tokens")
    unsaved = result.train.file_size is not None and result.file_size is None
    return TrialResult(
        trial.id,
        status,
        reason,
        curve=tuple(curve),
        trainable_parameters=result.train.num_trainable_params,
        adapter_bytes=result.file_size,
        train_tokens=None if tokens is None else int(tokens),
        train_seconds=result.train.train_time,
        evaluation_seconds=result.total("eval time"),
        warnings=(UNKNOWN_SIZE,) if unsaved else (),
    )


def _cost(result: ResultFile) -> Cost:
    """Return a run's costs; a step's time is the mean of the steps alone, not of ``train_time``."""
    if result.train.status != SUCCESS:
        reason = result.run.error_msg or f"their run ended as `{result.train.status}`"
        return Cost(result.name, Status.FAILED, reason)
    steps, seconds = result.run.train_config.max_steps, result.total("train time")
    tokens = result.number(result.last, "train total tokens")
    cost = Cost(
        result.name,
        Status.DONE,
        trainable_parameters=result.train.num_trainable_params,
        train_tokens_per_second=tokens / seconds if tokens and seconds else None,
        step_milliseconds=1000 * seconds / steps if seconds else None,
        train_peak_bytes=result.train.memory_max,
        memory_kind=MEMORY_KIND,
        steps=steps,
        tokens_per_step=tokens / steps if tokens else None,
    )
    ours = result.meta.get(BAKEOFF_SECTION)
    known = {key: ours["cost"][key] for key in BAKEOFF_COSTS} if ours else {}
    return dataclasses.replace(cost, **known)


def _imported_scores(result: ResultFile, benchmark: Benchmark) -> ImportedScores:
    n = None if benchmark.no_interval else benchmark.n_test
    score = result.score
    if score is not None and n is not None:
        right = score * n
        if not 0 <= score <= 1 or abs(right - round(right)) > ROUNDING:
            raise PreflightError(
                "hf-test-items-wrong",
                f"{result.path}: test {result.metric} {score!r} is not a share of {n} items.",
                "`--test-items N` with the number of items that it is over.",
            )
    train, run = result.train, result.run
    forgetting = result.number(result.last, benchmark.forgetting)
    figures = {
        "created_at": run.created_at,
        "accelerator_memory_max": train.memory_max,
        "accelerator_memory_reserved_avg": train.memory_mean,
        "accelerator_memory_reserved_99th": train.memory_99th,
        "train_time": train.train_time,
        "train_time_of_steps": result.total("train time"),
        "eval_time": result.total("eval time"),
        "total_time": run.total_time,
        "file_size": result.file_size,
        "num_trainable_params": train.num_trainable_params,
        "num_total_params": train.num_total_params,
        f"test {benchmark.metric.name}": score,
        "train loss": result.number(result.last, "train loss"),
        benchmark.forgetting: forgetting,
        "optimizer_type": run.train_config.optimizer_type,
        "weight_decay": run.train_config.optimizer_kwargs.weight_decay,
        "max_steps": run.train_config.max_steps,
        "seed": run.train_config.seed,
    }
    return ImportedScores(score, n, forgetting, figures)


def _frozen_values(
    results: Sequence[ResultFile], trials: Sequence[tuple[Trial, TrialResult]], base: str
) -> dict[str, Any]:
    """Return what ``bakeoff compare`` holds against another study."""
    meta = results[0].meta
    config = results[0].run.train_config.model_dump(mode="json")
    del config["optimizer_kwargs"]
    return {
        "spec": {"base": {"model": base}, "train_config": config},
        "machine": {
            "versions": meta.get("package_info") or {},
            "hardware": (meta.get("system_info") or {}).get("accelerator"),
        },
        "data": meta.get("dataset_info") or {},
        "methods": {trial.method.name: dataclasses.asdict(trial.method) for trial, _ in trials},
    }


def import_results(results: Path, out: Path, wishes: ImportOptions) -> dict[str, Any]:
    """Make a study folder of Hugging Face's ``method_comparison`` results; return its report.

    Raises:
        UsageError: ``folder-taken``, and what ``importing.make`` raises.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError("folder-taken", f"{out} is there already.", "another one: `--out DIR`.")
    made = importing.build_study(results, wishes)
    study_folder.create(out)
    with hold_lock(out), Writer(out / study_folder.DATABASE) as store:
        store.add_trials([trial for trial, _ in made.trials])
        for _, result in made.trials:
            store.save(result)
        for cost in made.costs:
            store.save_cost(cost)
        store.set_all(made.values)
    return write.report(out)
