"""A full disk pauses a study: nothing is marked as failed, what was acknowledged is there after."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.resume import comparable
from helpers.trials import ENTRIES
from safetensors import SafetensorError

from bakeoff import api
from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import SplitScores, Status, TrialResult
from bakeoff.core.trial import Segment, Trial
from bakeoff.study import rounds
from bakeoff.study.config import parse_spec
from bakeoff.study.executors import Outcome
from bakeoff.study.planning.estimate import disk_bytes
from bakeoff.study.remote import check_disk_full
from bakeoff.study.storage import study_dir
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.testing.trials import CONDITIONS
from bakeoff.training import checkpoints
from bakeoff.training.preflight import cost_probe

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk(NamedTuple):
    """A disk of two megabytes, and what makes it larger."""

    path: Path
    grow: Callable[[], object]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    tried = None
    if sys.platform == "linux":
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried is None or tried.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {tried.stderr if tried else sys.platform}")
    more = ["mount", "-o", "remount,size=64m", str(place)]
    yield Disk(place, lambda: subprocess.run(more, check=True))
    subprocess.run(["umount", str(place)], check=True)


def test_results_survive_full_disk(disk: Disk) -> None:
    """Every acknowledged result survives a full disk.

    Fault 7: SQLite's own full disk; the write that failed is not half there, and goes on.
    """
    path, acknowledged = disk.path / "study.db", 0
    trials = [
        Trial(ENTRIES[0], {"learning_rate": 1e-3}, seed, "final", CONDITIONS) for seed in range(500)
    ]

    def result(trial: Trial) -> TrialResult:
        scores = SplitScores((1.0,) * 200, ("x" * 50,) * 200, None)
        return TrialResult(trial.id, Status.DONE, splits={"test": scores})

    with Writer(path) as writer:
        writer.add_trials(trials[:400])
        with pytest.raises(EnvironmentProblem) as error:  # noqa: PT012  # one of many fails
            for trial in trials[:400]:
                writer.save(result(trial))
                acknowledged += 1
        assert (error.value.code, error.value.exit_code) == ("disk-full", 6)
        assert str(disk.path) in error.value.cause
        assert 10 < acknowledged < 400
        with Reader(path) as reader:
            assert len(reader.finished_ids()) == acknowledged
        disk.grow()
        writer.save(result(trials[acknowledged]))
    with Reader(path) as reader:
        kept = [r for _, r in reader.trials() if r is not None]
        assert kept == [result(t) for t in trials[: acknowledged + 1]]
        assert reader.integrity_problems() == []


def test_new_study_on_full_disk(disk: Disk) -> None:
    """A new study on a full disk reports it.

    Fault 7: before there is a database, and when an old one is opened.
    """
    Writer(disk.path / "study.db").close()
    with pytest.raises(OSError, match="No space"):
        (disk.path / "filler").write_bytes(bytes(4 << 20))
    for name in ("study.db", "new.db"):
        path = disk.path / name
        with pytest.raises(EnvironmentProblem, match="disk-full"), Writer(path) as store:
            store.set("key", "x" * 10_000)
    disk.grow()
    with Writer(disk.path / "study.db") as writer:
        writer.set("key", 1)


def test_disk_full_error_recognition() -> None:
    """A full disk is recognised by error number and by message."""
    wrapped = ValueError("could not save")
    wrapped.__cause__ = SafetensorError("I/O error: No space left on device (os error 28)")
    for error in (FULL, OSError(errno.EDQUOT, "x"), wrapped):
        assert files.disk_full_message(error) is not None
    for other in (OSError(errno.EIO, "Input/output error"), ValueError("full of device")):
        assert files.disk_full_message(other) is None
    one, two = ValueError("a"), ValueError("b")
    one.__context__, two.__context__ = two, one  # an endless chain ends
    assert files.disk_full_message(one) is None


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(0, None, "OSError: [Errno 28] No space left on device: '/dev/shm/x'"),
        Outcome(0, {"results": [], "disk_full": "OSError: [Errno 28]"}, None),
    ],
)
def test_worker_disk_full_pauses_study(tmp_path: Path, outcome: Outcome) -> None:
    """A full disk reported by a worker pauses the study."""
    with pytest.raises(EnvironmentProblem, match="disk-full"):
        check_disk_full(tmp_path, outcome)
    check_disk_full(tmp_path, Outcome(0, {"results": []}, None))
    check_disk_full(tmp_path, Outcome(0, None, "ValueError: no"))


def full_at(
    call: int, real: Callable[..., Any], error: BaseException
) -> tuple[Callable[..., Any], list[int]]:
    """Return a function that finds the disk full at its n-th call and from then on."""
    calls: list[int] = []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) >= call:
            raise error
        return real(*arguments)

    return stopping, calls


def test_resume_after_disk_full_same_numbers(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study resumes after a full disk and gives the same numbers.

    Fault 7: at a state, at a trial's folder, at frozen data; no trial is kept as failed.
    """
    study_values["budget"]["steps"] = 20
    spec, out = parse_spec(study_values), tmp_path / "paused"
    whole = api.run(spec, tmp_path, tmp_path / "whole")
    words = SafetensorError("Error while serializing: I/O error: No space left on device")
    for module, name, call, error in (
        (study_dir, "freeze_data", 1, FULL),
        (files, "atomic_write_text", 1, FULL),  # the note of who holds the lock
        (checkpoints, "save_all", 2, words),
        (trial_dir, "write_manifest", 3, FULL),
    ):
        with monkeypatch.context() as patched:
            stopping, calls = full_at(call, getattr(module, name), error)
            patched.setattr(module, name, stopping)
            with pytest.raises(EnvironmentProblem) as paused:
                api.run(spec, tmp_path, out)
            # the folders of a group's two trials are written at once
            assert call <= len(calls) <= call + 1, "it went on after the disk was full"
        assert (paused.value.code, paused.value.exit_code) == ("disk-full", 6)
        with Reader(out / "study.db") as reader:
            ended = [r.status for _, r in reader.trials() if r is not None]
            assert Status.FAILED not in ended
    assert any(s is Status.DONE for s in ended)
    assert comparable(api.run(spec, tmp_path, out)) == comparable(whole)
    assert {f.state for f in api.diagnose(out)} == {"ok"}


def test_cost_probe_repeated_after_disk_full(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A cost probe that met a full disk is repeated.

    Fault 7: a probe's failure would stand for its method for ever.
    """

    with pytest.MonkeyPatch.context() as patched:

        def stop(*_: object) -> None:
            raise FULL

        patched.setattr(cost_probe, "_probe", stop)
        trial = Trial(ENTRIES[0], {"learning_rate": 1e-3}, 0, "search", CONDITIONS)
        payload = Segment((trial,), 0, 1, str(tmp_path), "base").to_json()
        with pytest.raises(OSError, match="No space left"):
            cost_probe.probe_cost(payload)


def test_space_for_twice_files_required(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space for twice the files is required before training.

    Fault 7: before anything is trained, with what is needed and what is free.
    """
    spec, out = parse_spec(study_values), tmp_path / "out"
    trained: list[str] = []
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        patched.setattr(rounds, "run_rounds", lambda *_: trained.append("rounds"))
        with pytest.raises(EnvironmentProblem) as error:
            api.run(spec, tmp_path, out)
    assert (error.value.code, error.value.exit_code, trained) == ("disk-space", 6, [])
    with Reader(out / "study.db") as reader:
        sizes = [c.trainable_parameters or 0 for c in reader.costs().values()]
    assert spec.budget.seeds == 2
    wanted = 2 * disk_bytes(spec, sizes, (2,))
    # two seeds of two settings that race: three copies of each in fp32; and two adapters in the end
    assert disk_bytes(spec, sizes, (2,)) == 4 * (2 * 2 * 3 + 2) * sum(sizes) > 0
    assert f"{wanted / 2**20:,.0f} MiB" in error.value.cause
