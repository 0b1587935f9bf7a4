"""Executors that tests inject into `api.run`: in this process, recorded, with stand-ins."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from bakeoff import api
from bakeoff.core import jobs
from bakeoff.core.trial import Trial
from bakeoff.study.executors import Executor, Options, Outcome
from bakeoff.study.remote import ExecutorFactory, make_executor
from bakeoff.study.run import run_study

Function = Callable[[dict[str, Any]], dict[str, Any]]
"""A function that workers run."""


def make_inline(name: str, workers: int, options: Options) -> Executor:
    """Return an executor that does everything in this process."""
    return make_executor("inline", workers, options)


def current_factory() -> ExecutorFactory:
    """Return what makes the executors of `api.run` at present."""
    factory: ExecutorFactory = getattr(api.run_study, "keywords", {}).get(
        "make_executor", make_executor
    )
    return factory


def use_executors(patch: pytest.MonkeyPatch, factory: ExecutorFactory) -> None:
    """Let `api.run` make its executors with ``factory``."""
    patch.setattr(api, "run_study", functools.partial(run_study, make_executor=factory))


class StandIns:
    """An executor factory that answers some functions itself and leaves the others to ``inner``."""

    def __init__(self, inner: ExecutorFactory, functions: dict[str, Function]) -> None:
        self.inner, self.functions = inner, functions

    def __call__(self, name: str, workers: int, options: Options) -> Executor:
        return _StandIn(self.inner(name, workers, options), self.functions)


class _StandIn:
    def __init__(self, inner: Executor, functions: dict[str, Function]) -> None:
        self._inner, self._functions = inner, functions

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        answer = self._functions.get(function)
        if answer is None:
            yield from self._inner.map(function, payloads)
            return
        for index, payload in enumerate(payloads):
            yield Outcome(index, answer(payload), None)

    def close(self) -> None:
        self._inner.close()


class Recorder:
    """An executor factory that notes the trials of each segment, and leaves the work to others."""

    def __init__(self, inner: ExecutorFactory) -> None:
        self.inner = inner
        self.trained: list[str] = []
        """Ids, one for each segment that a trial was in."""

    def __call__(self, name: str, workers: int, options: Options) -> Executor:
        return _Recording(self.inner(name, workers, options), self.trained)


class _Recording:
    def __init__(self, inner: Executor, trained: list[str]) -> None:
        self._inner, self._trained = inner, trained

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        recorded = self._record(payloads) if function == jobs.RUN_SEGMENT else payloads
        return self._inner.map(function, recorded)

    def _record(self, payloads: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for payload in payloads:
            self._trained.extend(Trial.from_json(t).id for t in payload["trials"])
            yield payload

    def close(self) -> None:
        self._inner.close()
