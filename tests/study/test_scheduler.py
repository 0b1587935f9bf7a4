"""Rounds: dead workers, failures that repeat, and stops, without training anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.study_runs import RecordingProgress
from sqlalchemy.exc import StatementError

from bakeoff.core.errors import EnvironmentProblem, Interrupted
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import Segment, Trial
from bakeoff.study import scheduler
from bakeoff.study.executors import Outcome
from bakeoff.study.failures import CircuitBreaker, Quarantine
from bakeoff.study.monitoring.signals import StopRequest
from bakeoff.study.scheduler import RunContext, Stage, run_trials
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.testing.trials import CONDITIONS, make_trial
from bakeoff.training import segment

Work = Callable[[Segment], list[TrialResult] | str]
"""What becomes of a segment: its results, or what its worker died of."""


class Scripted:
    """An executor that does as it is told."""

    def __init__(self, work: Work, stop: StopRequest) -> None:
        self.work = work
        self.stop = stop
        self.widths: list[int] = []

    def map(self, _: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        for index, payload in enumerate(payloads):
            segment = Segment.from_json(payload)
            self.widths.append(len(segment.trials))
            done = self.work(segment)
            if isinstance(done, str):
                yield Outcome(index, None, done, "its last words")
            else:
                yield Outcome(index, {"results": [r.to_json() for r in done]}, None)
            if self.stop():
                return

    def close(self) -> None: ...


class OnGpus(Scripted):
    """The same on two GPUs in turn, of which one is broken."""

    def __init__(self, broken: str) -> None:
        super().__init__(done, StopRequest())
        self.broken = broken
        self.gpus = ["0", "1"]
        self.used: list[str] = []

    def map(self, _: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        for index, payload in enumerate(payloads):
            gpu = self.gpus[index % len(self.gpus)]
            self.used.append(gpu)
            if gpu == self.broken:
                yield Outcome(index, None, "CUDA error: ECC", gpu=gpu, gpu_lost=True)
            else:
                results = [r.to_json() for r in done(Segment.from_json(payload))]
                yield Outcome(index, {"results": results}, None, gpu=gpu)

    def exclude_gpu(self, gpu: str) -> None:
        self.gpus.remove(gpu)


def done(segment: Segment) -> list[TrialResult]:
    return [TrialResult(t.id, Status.DONE, step=segment.stop) for t in segment.trials]


def failed(segment: Segment, why: str) -> list[TrialResult]:
    return [TrialResult(t.id, Status.FAILED, why) for t in segment.trials]


def make(
    tmp_path: Path, work: Work, methods: int = 3
) -> tuple[RunContext, Scripted, RecordingProgress]:
    """Return a study at work that trains nothing."""
    stop, progress = StopRequest(), RecordingProgress()
    through = Scripted(work, stop)
    spec = SimpleNamespace(
        engine=SimpleNamespace(max_lanes=None),
        budget=SimpleNamespace(select_on="metric"),
    )
    study: Any = SimpleNamespace(
        spec=spec, folder=tmp_path, base=SimpleNamespace(path="base"), conditions=CONDITIONS
    )
    store = Writer(tmp_path / "study.db")
    running = RunContext(study, store, progress, through, stop, CircuitBreaker(methods))
    return running, through, progress


def trials(count: int, *methods: str) -> list[Trial]:
    return [make_trial(m, "classify", seed=s) for m in methods or ("lora",) for s in range(count)]


def stored_results(tmp_path: Path) -> dict[str, TrialResult | None]:
    with Reader(tmp_path / "study.db") as reader:
        return {t.id: r for t, r in reader.trials()}


def test_dead_worker_group_retried_in_halves(tmp_path: Path) -> None:
    """A group whose worker died is retried in halves."""

    def hungry(segment: Segment) -> list[TrialResult] | str:
        return done(segment) if len(segment.trials) <= 2 else "the worker was killed"

    running, through, progress = make(tmp_path, hungry)
    run_trials(running, Stage("Search", (0, 30)), trials(5))
    assert through.widths == [5, 3, 2, 2, 1]
    assert {r.status for r in stored_results(tmp_path).values() if r} == {Status.DONE}
    assert "retrying 5 lanes in halves" in progress.lines[0]


def test_crashing_trial_fails_alone(tmp_path: Path) -> None:
    """Only the trial that crashes its worker fails."""
    deadly = trials(4)[2].id

    def work(segment: Segment) -> list[TrialResult] | str:
        return "SIGSEGV" if deadly in {t.id for t in segment.trials} else done(segment)

    running, through, _ = make(tmp_path, work)
    run_trials(running, Stage("Search", (0, 30)), trials(4))
    found = stored_results(tmp_path)
    assert {i for i, r in found.items() if r and r.status is Status.FAILED} == {deadly}
    assert found[deadly] is not None
    assert (found[deadly].reason, found[deadly].traceback) == ("SIGSEGV", "its last words")
    assert through.widths == [4, 2, 2, 1, 1, 1], "alone it had a second try"


def test_single_trial_gets_second_try(tmp_path: Path) -> None:
    """A single trial gets a second try."""
    deaths = ["killed"]

    def once(segment: Segment) -> list[TrialResult] | str:
        return deaths.pop() if deaths else done(segment)

    running, _, _ = make(tmp_path, once)
    run_trials(running, Stage("Search", (0, 30)), trials(1))
    assert [r.status for r in stored_results(tmp_path).values() if r] == [Status.DONE]


@pytest.mark.parametrize(("methods", "most"), [(2, 2), (3, 3), (9, 3)])
def test_repeated_failure_pauses_study(methods: int, most: int, tmp_path: Path) -> None:
    """The same failure in one method after another pauses the study."""
    names = ("lora", "ia3", "vera", "oft", "dora")[:most]
    seen = iter(range(100))
    running, through, _ = make(
        tmp_path, lambda s: failed(s, f"CUDA error at 0x7f{next(seen)}"), methods
    )
    with pytest.raises(EnvironmentProblem, match="CUDA error") as caught:
        run_trials(running, Stage("Search", (0, 30)), trials(2, *names))
    assert (caught.value.code, caught.value.exit_code) == ("same-failure", 6)
    assert len(through.widths) == most
    assert not any(stored_results(tmp_path).values()), "nothing is marked failed"


def test_intervening_success_blames_methods(tmp_path: Path) -> None:
    """A success in between attributes the failures to the methods."""

    def work(segment: Segment) -> list[TrialResult]:
        fine = segment.trials[0].method.name == "vera"
        return done(segment) if fine else failed(segment, "no such layer")

    running, _, _ = make(tmp_path, work)
    run_trials(running, Stage("Search", (0, 30)), trials(1, "lora", "ia3", "vera", "oft", "dora"))
    found = [r.status for r in stored_results(tmp_path).values() if r]
    assert found == [Status.FAILED] * 2 + [Status.DONE] + [Status.FAILED] * 2


def test_different_failures_recorded_study_continues(tmp_path: Path) -> None:
    """Different failures are recorded and the study continues."""
    running, _, _ = make(tmp_path, lambda s: failed(s, f"of {s.trials[0].method.name}"))
    run_trials(running, Stage("Search", (0, 30)), trials(1, "lora", "ia3", "vera", "oft"))
    assert len([r for r in stored_results(tmp_path).values() if r]) == 4


def test_stop_keeps_finished_trials(tmp_path: Path) -> None:
    """A stop keeps finished results and marks nothing as failed."""

    def work(segment: Segment) -> list[TrialResult]:
        running.stop.signal = 2
        return done(segment)

    running, through, _ = make(tmp_path, work)
    with pytest.raises(Interrupted):
        run_trials(running, Stage("Search", (0, 30)), trials(1, "lora", "ia3", "vera"))
    assert len(through.widths) == 1
    assert [r.status for r in stored_results(tmp_path).values() if r] == [Status.DONE]
    running.stop.signal = None
    running, through, _ = make(tmp_path, done)
    run_trials(running, Stage("Search", (0, 30)), trials(1, "lora", "ia3", "vera"))
    assert len(through.widths) == 2


def test_paused_group_resumes_from_checkpoints(tmp_path: Path) -> None:
    """A paused group resumes from its checkpoints."""
    spans = []

    def work(segment: Segment) -> list[TrialResult]:
        spans.append((segment.start, len(segment.trials)))
        if len(spans) > 1:
            return done(segment)
        running.stop.signal = 15
        for t in segment.trials:
            path = tmp_path / "trials" / t.id / "state" / "7.safetensors"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
        return [TrialResult(t.id, Status.STOPPED, step=7) for t in segment.trials]

    running, _, _ = make(tmp_path, work)
    with pytest.raises(Interrupted) as caught:
        run_trials(running, Stage("Final", (0, 30)), trials(3))
    assert caught.value.exit_code == 143
    running, _, _ = make(tmp_path, work)
    run_trials(running, Stage("Final", (0, 30)), trials(3))
    assert spans == [(0, 3), (7, 3)]
    assert {r.status for r in stored_results(tmp_path).values() if r} == {Status.DONE}
    assert not list(tmp_path.rglob("*.safetensors")), "states that nothing goes on from are gone"


def test_missing_checkpoints_restart_group(tmp_path: Path) -> None:
    """Without its checkpoints, a paused group starts over."""
    segment = Segment(tuple(trials(2)), 0, 30, str(tmp_path), "base")
    stands = {t.id: 7 for t in segment.trials}
    assert scheduler._resume_from_pause(segment, set(), stands) == segment
    uneven = {segment.trials[0].id: 7}
    assert scheduler._resume_from_pause(segment, set(), uneven) == segment


def test_group_written_atomically(tmp_path: Path) -> None:
    """A group is written in one transaction."""
    running, _, _ = make(tmp_path, done)
    own = trials(2)
    running.store.add_trials(own)
    good = TrialResult(own[0].id, Status.DONE)
    torn = dataclasses.replace(good, trial_id=own[1].id, step=object())  # no JSON value
    with pytest.raises(StatementError, match="not JSON"):
        running.store.save_group([good, torn])
    assert not any(stored_results(tmp_path).values())


@pytest.mark.parametrize("lanes", [1, 2])
def test_gpu_error_ends_worker_not_trial(
    lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that broke the GPU ends the worker and is no trial's result."""
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(segment, "_train_and_score", Mock(side_effect=lost))
    trials = tuple(make_trial("lora", "sft", seed=s) for s in range(lanes))
    with pytest.raises(RuntimeError, match="device-side assert"):
        segment.run(Segment(trials, 0, 10, str(tmp_path), "base").to_json())
    full = torch.AcceleratorError("CUDA error: out of memory")
    monkeypatch.setattr(segment, "_train_and_score", Mock(side_effect=full))
    results = segment.run(Segment(trials, 0, 10, str(tmp_path), "base").to_json())["results"]
    assert [r["status"] for r in results] == ["out_of_memory"] * lanes


def test_gpu_lost_by_methods_disabled(tmp_path: Path) -> None:
    """A GPU that several methods lose is disabled.

    Faults 13 and 17, by GPU.
    """
    running, _, progress = make(tmp_path, done, methods=4)
    through = OnGpus(broken="1")
    run_trials(
        running._replace(executor=through),
        Stage("Search", (0, 30)),
        trials(1, "lora", "dora", "ia3", "oft"),
    )
    assert through.used == ["0", "1", "0", "1", "0", "0"]
    assert {r.status for r in stored_results(tmp_path).values() if r} == {Status.DONE}
    (said,) = (text for text in progress.lines if "disabled" in text)
    assert said.startswith("GPU 1 is disabled for this run: ")


@pytest.mark.parametrize(
    ("story", "aside"),
    [
        # gpu, method, whether it was lost
        ([("1", "A", True), ("0", "B", False), ("1", "C", True)], ("A", "C")),
        ([("1", "A", True), ("0", "B", False), ("1", "A", True)], ()),  # the method's own fault
        ([("1", "A", True), ("1", "C", True)], ()),  # nothing went well elsewhere
        ([("1", "A", True), ("1", "B", False), ("0", "B", False), ("1", "C", True)], ()),
        ([("0", "B", False), ("1", "A", True), ("1", "C", True)], ()),
        ([("0", "A", True), ("1", "A", True), ("0", "C", True), ("1", "C", True)], ()),
        ([(None, "A", True), ("0", "B", False), (None, "C", True)], ()),
    ],
)
def test_lost_gpu_attribution(
    story: list[tuple[str | None, str, bool]], aside: tuple[str, ...]
) -> None:
    """A lost GPU is attributed to the method or to the device."""
    gpus = Quarantine()
    heard = [gpus.record_outcome(gpu, method, lost, not lost) for gpu, method, lost in story]
    assert heard[-1] == aside
    assert not any(heard[:-1])
