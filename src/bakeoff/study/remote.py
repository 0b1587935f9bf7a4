"""Run functions of the ``training`` package through an executor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bakeoff.core import files, plugins
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError, UsageError
from bakeoff.study.config import StudySpec
from bakeoff.study.executors import Executor, Options, Outcome, never


class ExecutorFactory(Protocol):
    """A function that creates executors: ``make_executor``, or a test's own."""

    def __call__(self, name: str, workers: int, options: Options) -> Executor:
        """Return the executor called ``name``."""
        ...


def make_executor(name: str, workers: int, options: Options = Options()) -> Executor:  # noqa: B008  # frozen
    """Return the executor called ``name``."""
    executor: Executor = plugins.load_plugin("study.executors", name, "executor").EXECUTOR(
        workers, options
    )
    return executor


class SharedExecutors:
    """Creates executors, and returns the same one for questions that no request can stop.

    The questions of a study's set-up then share a worker, which keeps its imports, its device and
    the base model from one to the next. ``close`` ends it: a measurement needs the device alone.
    """

    def __init__(self, make: ExecutorFactory) -> None:
        self._make = make
        self._shared: dict[str, Executor] = {}

    def __call__(self, name: str, workers: int, options: Options) -> Executor:
        """Return the executor called ``name``."""
        if options.fresh_process or options.should_stop is not never:
            return self._make(name, workers, options)
        key = json.dumps([name, workers, options.one_gpu_each, options.engine], sort_keys=True)
        if key not in self._shared:
            self._shared[key] = self._make(name, workers, options)
        return self._shared[key]

    def close(self) -> None:
        """Close the shared executors; later ones are new."""
        for executor in self._shared.values():
            executor.close()
        self._shared.clear()


def open_executor(
    spec: StudySpec,
    should_stop: Callable[[], bool] = never,
    make: ExecutorFactory = make_executor,
) -> Executor:
    """Return the study's executor; it takes no more work once ``should_stop`` is true."""
    return make(spec.engine.executor, spec.engine.workers, _options(spec, should_stop))


def exclusive_executor(
    spec: StudySpec,
    should_stop: Callable[[], bool] = never,
    make: ExecutorFactory = make_executor,
) -> Executor | None:
    """Return an executor for measurements where the trials run, or None if that is this machine.

    It runs one payload at a time, each in a new process.
    """
    if not is_remote(spec):
        return None
    options = dataclasses.replace(_options(spec, should_stop), fresh_process=True)
    return make(spec.engine.executor, 1, options)


def is_remote(spec: StudySpec) -> bool:
    """Return whether the study's executor may use other machines than this one."""
    kind = plugins.load_plugin("study.executors", spec.engine.executor, "executor").EXECUTOR
    return bool(getattr(kind, "remote", False))


def _options(spec: StudySpec, should_stop: Callable[[], bool]) -> Options:
    engine = spec.engine
    return Options(
        stall_timeout=60 * engine.patience,
        one_gpu_each=engine.device in ("auto", "cuda"),
        should_stop=should_stop,
        engine=engine.model_dump(),
    )


def run_remote(executor: Executor, function: str, value: dict[str, Any]) -> dict[str, Any]:
    """Run one function through an executor and return its answer.

    Raises:
        PreflightError: the function reported an error (``error`` in its answer).
        EnvironmentProblem: the same, and the machine is the cause.
        UsageError: the same, and the study file is the cause.
        BakeoffError: ``worker-failed``: the worker crashed or raised.
    """
    outcome = next(iter(executor.map(function, [value])))
    check_disk_full(Path(value.get("folder") or Path.cwd()), outcome)
    if outcome.value is None:
        raise BakeoffError(
            "worker-failed", f"{function}: {outcome.error}", "`bakeoff doctor` checks the machine."
        )
    error = outcome.value.get("error")
    if error is not None:
        kinds = {kind.exit_code: kind for kind in (EnvironmentProblem, UsageError)}
        kind = kinds.get(error.get("exit"), PreflightError)
        raise kind(error["code"], error["cause"], error["try"])
    return outcome.value


def check_disk_full(folder: Path, outcome: Outcome) -> None:
    """Pause the study if a worker met a full disk; no trial is marked as failed for that.

    Raises:
        EnvironmentProblem: ``disk-full``.
    """
    message = (outcome.value or {}).get("disk_full")
    if message is None and outcome.error is not None:
        message = outcome.error if files.mentions_full_disk(outcome.error) else None
    if message is not None:
        raise files.disk_full_error(folder, message)
