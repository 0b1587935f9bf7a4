"""Executors keep their contract: an outcome for every payload, whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bakeoff import registry
from bakeoff.executors import Executor


def square(value: dict[str, Any]) -> dict[str, Any]:
    return {"square": value["n"] ** 2, "pid": os.getpid()}


def misbehave(value: dict[str, Any]) -> dict[str, Any]:
    if value["do"] == "raise":
        raise ValueError("what a pity")
    if value["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if value["do"] == "exit":
        os._exit(3)
    return {"fine": True}


def sleep(value: dict[str, Any]) -> dict[str, Any]:
    Path(value["pid_file"]).write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def make(name: str, workers: int = 1) -> Executor:
    made: Executor = registry.find("executors", name).EXECUTOR(workers=workers)
    return made


@pytest.mark.parametrize("name", registry.names("executors"))
@pytest.mark.parametrize("workers", [1, 2])
def test_every_payload_gets_its_outcome(name: str, workers: int) -> None:
    payloads = [{"n": n} for n in range(5)]
    outcomes = sorted(
        make(name, workers).map(f"{__name__}:square", payloads), key=lambda o: o.index
    )
    assert [o.value["square"] for o in outcomes if o.value] == [0, 1, 4, 9, 16]
    assert all(o.error is None for o in outcomes)


def test_processes_are_fresh() -> None:
    outcomes = make("process", 2).map(f"{__name__}:square", [{"n": n} for n in range(4)])
    pids = {o.value["pid"] for o in outcomes if o.value}
    assert len(pids) == 4
    assert os.getpid() not in pids


@pytest.mark.parametrize("name", registry.names("executors"))
def test_an_error_in_the_work_is_an_outcome(name: str) -> None:
    payloads = [{"do": "raise"}, {"do": "nothing"}]
    first, second = make(name).map(f"{__name__}:misbehave", payloads)
    assert first.value is None
    assert first.error == "ValueError: what a pity"
    assert second.value == {"fine": True}


def test_a_dead_worker_is_an_outcome_and_the_rest_goes_on() -> None:
    payloads = [{"do": what} for what in ("die", "exit", "nothing")]
    outcomes = sorted(make("process").map(f"{__name__}:misbehave", payloads), key=lambda o: o.index)
    assert "was killed" in (outcomes[0].error or "")
    assert "exit code 3" in (outcomes[1].error or "")
    assert outcomes[2].value == {"fine": True}


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "from bakeoff.executors.process import Process\n"
        "if __name__ == '__main__':\n"
        f"    list(Process().map('test_executors:sleep', [{{'pid_file': {str(pid_file)!r}}}]))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != "zombie":
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)
