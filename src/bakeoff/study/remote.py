"""Run functions of the training half through an executor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bakeoff.core import disk_full, plugins
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError, UsageError
from bakeoff.study.config import StudySpec
from bakeoff.study.executors import Executor, Options, Outcome, never


def open_executor(spec: StudySpec, stopping: Callable[[], bool] = never) -> Executor:
    """Return the study's executor, which takes no more work from ``stopping`` on."""
    return make_executor(spec.engine.executor, spec.engine.workers, _options(spec, stopping))


def is_remote(spec: StudySpec) -> bool:
    """Say whether the study's executor may work on other machines than this one."""
    kind = plugins.load_plugin("study.executors", spec.engine.executor, "executor").EXECUTOR
    return bool(getattr(kind, "remote", False))


def exclusive_executor(spec: StudySpec, stopping: Callable[[], bool] = never) -> Executor | None:
    """Return what measures one method after another where the trials run: a process each, alone.

    None where that is this machine.
    """
    if not is_remote(spec):
        return None
    alone = dataclasses.replace(_options(spec, stopping), fresh_process=True)
    return make_executor(spec.engine.executor, 1, alone)


def _options(spec: StudySpec, stopping: Callable[[], bool]) -> Options:
    engine = spec.engine
    return Options(
        stall_timeout=60 * engine.patience,
        one_gpu_each=engine.device in ("auto", "cuda"),
        should_stop=stopping,
        engine=engine.model_dump(),
    )


def make_executor(name: str, workers: int, options: Options = Options()) -> Executor:  # noqa: B008  # frozen
    """Return the executor called ``name``."""
    made: Executor = plugins.load_plugin("study.executors", name, "executor").EXECUTOR(
        workers, options
    )
    return made


def run_remote(through: Executor, function: str, value: dict[str, Any]) -> dict[str, Any]:
    """Run one function through an executor and return its answer.

    Raises:
        PreflightError: what the function refuses, under ``error`` in its answer.
        EnvironmentProblem: the same, where the machine lacks something.
        UsageError: the same, where the study file is wrong.
        BakeoffError: ``worker-failed`` with the worker's last words.
    """
    outcome = next(iter(through.map(function, [value])))
    check_disk_full(Path(value.get("folder") or Path.cwd()), outcome)
    if outcome.value is None:
        raise BakeoffError(
            "worker-failed", f"{function}: {outcome.error}", "`bakeoff doctor` checks the machine."
        )
    refused = outcome.value.get("error")
    if refused is not None:
        kinds = {kind.exit_code: kind for kind in (EnvironmentProblem, UsageError)}
        kind = kinds.get(refused.get("exit"), PreflightError)
        raise kind(refused["code"], refused["cause"], refused["try"])
    return outcome.value


def check_disk_full(folder: Path, outcome: Outcome) -> None:
    """Pause the study where a worker met a full disk: no trial, cost or score comes of that.

    Raises:
        EnvironmentProblem: ``disk-full``.
    """
    said = (outcome.value or {}).get("disk_full")
    if said is None and outcome.error is not None and disk_full.mentions_full_disk(outcome.error):
        said = outcome.error
    if said is not None:
        raise disk_full.disk_full_error(folder, said)
