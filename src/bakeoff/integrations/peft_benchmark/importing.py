"""Import result files of ``method_comparison`` as a study.

Every experiment becomes a method of the study, under its own name, with one final trial. Nothing is
measured; values that the files lack are None.
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
from bakeoff.integrations.peft_benchmark import import_notes
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
"""Largest distance of score x items from an integer that counts as a rounding error."""
UNKNOWN_SIZE = (
    f"its file size, {NO_FILE_SIZE:,}, is the value that method_comparison writes if a checkpoint "
    "could not be saved: treated as unknown."
)
MEMORY_KIND = "device_reserved"


class ImportOptions(NamedTuple):
    """Options of an import; None means the default of the benchmark."""

    name: str
    control: str | None = None
    margin: float | None = None
    test_items: int | None = None


class StudyContents(NamedTuple):
    """The contents of a study folder: its values, its trials with their results, its costs."""

    values: dict[str, Any]
    trials: tuple[tuple[Trial, TrialResult], ...]
    costs: tuple[Cost, ...]


def build_study(folder: Path, options: ImportOptions) -> StudyContents:
    """Read a folder of result files and return the study that they make.

    Raises:
        UsageError: ``no-hf-results``, ``unknown-experiment``, ``hf-control-unknown``,
            ``hf-test-items-unknown``, ``hf-margin``.
        PreflightError: ``hf-result-invalid`` and other errors of the files.
    """
    if options.margin is not None and not options.margin > 0:
        raise UsageError(
            "hf-margin", f"--margin {options.margin} must be above 0.", "--margin 0.02"
        )
    results = read_folder(folder)
    benchmark = benchmark_of(results, options.test_items)
    _check_same_base(results)
    control = _control(results, benchmark, options.control)
    ordered = sorted(results, key=lambda result: result.name != control)
    trials = tuple(_trial(result, benchmark) for result in ordered)
    reported = {r.name: _imported_scores(r, benchmark) for r in ordered}
    differing = import_notes.differing_parameters(ordered)
    known = ImportedStudy(str(folder), benchmark.name, reported, benchmark.no_interval, differing)
    base = ordered[0].run.train_config.model_id
    values = {
        "imported": {
            **dataclasses.asdict(known),
            "name": options.name,
            "base": base,
            "task": benchmark.task,
            "margin": options.margin or MARGIN,
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
            "a folder for each base model: scores on different bases cannot be compared.",
        )


def _control(results: Sequence[ResultFile], benchmark: Benchmark, requested: str | None) -> str:
    names = [result.name for result in results]
    control = requested or benchmark.control
    if control in names:
        return control
    if requested is not None:
        raise unknown_name("unknown-experiment", "experiment", requested, names)
    why = "name the experiment that the others are compared with"
    if benchmark.control:
        why = f"the folder lacks {benchmark.control}, the usual control of {benchmark.name}"
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
        # PEFT's cosine decays from the end of the warm-up; without it the rate is constant
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
        reason = result.run.error_msg or f"the run ended with status `{result.train.status}`"
        out = "out of memory" in reason.lower()
        status = Status.OUT_OF_MEMORY if out else Status.FAILED
    for entry in result.train.metrics:
        step, loss = result.number(entry, "step"), result.number(entry, "train loss")
        # the last entry repeats the previous loss and adds the test metric
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
    """Return a run's costs; the step time is the mean over training steps, not ``train_time``."""
    if result.train.status != SUCCESS:
        reason = result.run.error_msg or f"the run ended with status `{result.train.status}`"
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
                f"{result.path}: test {result.metric} {score!r} is not a fraction of {n} items.",
                "`--test-items N` with the number of items behind the score.",
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
    """Return the values that ``bakeoff compare`` compares with another study."""
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


def import_results(results: Path, out: Path, options: ImportOptions) -> dict[str, Any]:
    """Import a folder of ``method_comparison`` results into a study folder; return its report.

    Raises:
        UsageError: ``folder-taken``, and those of ``build_study``.
        PreflightError: those of ``build_study``.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError("folder-taken", f"{out} already exists.", "another folder: `--out DIR`.")
    contents = build_study(results, options)
    study_folder.create(out)
    with hold_lock(out), Writer(out / study_folder.DATABASE) as store:
        store.add_trials([trial for trial, _ in contents.trials])
        for _, result in contents.trials:
            store.save(result)
        for cost in contents.costs:
            store.save_cost(cost)
        store.set_all(contents.values)
    return write.report(out)
