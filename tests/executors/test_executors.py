"""Executors keep their contract: an outcome for every payload, whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

import bakeoff
from bakeoff.core import plugins
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.engine import heartbeat
from bakeoff.study.executors import Executor, Options
from bakeoff.study.executors.process import Process
from bakeoff.study.storage.database import Writer

no_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
NAMES = [
    pytest.param(name, marks=no_ray) if name == "ray" else name
    for name in plugins.list_plugins("study.executors")
]


def square(value: dict[str, Any]) -> dict[str, Any]:
    return {"square": value["n"] ** 2, "pid": os.getpid()}


class Left:
    """Notes in a file that it is gone."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __del__(self) -> None:
        Path(self.file).touch()


def misbehave(value: dict[str, Any]) -> dict[str, Any]:
    if value["do"] == "raise":
        raise ValueError("what a pity")
    if value["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if value["do"] == "groan":
        os.write(2, b"malloc(): corrupted unsorted chunks\n")
        os.abort()
    if value["do"] == "hang":
        Path(value["file"]).write_text(str(os.getpid()))
        time.sleep(600)
    if value["do"] == "long":
        for _ in range(30):
            time.sleep(0.1)
            heartbeat.beat()
    if value["do"] == "until asked":
        while not heartbeat.stop_requested():
            time.sleep(0.05)
        return {"asked": True}
    if value["do"] == "handles":
        handles = Path("/proc/self/fd").iterdir()
        return {"open": [str(h.readlink()) for h in handles if h.is_symlink()]}
    if value["do"] == "pid":
        return {"pid": os.getpid()}
    if value["do"] == "leave":
        left = Left(value["file"])
        left.itself = left  # type: ignore[attr-defined]  # only a collection frees it
    if value["do"] == "look":
        return {"gone": Path(value["file"]).exists()}
    if value["do"] == "exit":
        os._exit(3)
    return {"fine": True}


def nap(value: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.5)
    return {"pid": os.getpid()}


def sleep(value: dict[str, Any]) -> dict[str, Any]:
    Path(value["pid_file"]).write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def make(name: str, workers: int = 1) -> Executor:
    made: Executor = plugins.load_plugin("study.executors", name, "executor").EXECUTOR(
        workers=workers
    )
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_payload_gets_its_outcome(name: str, workers: int) -> None:
    payloads = [{"n": n} for n in range(5)]
    outcomes = sorted(
        make(name, workers).map(f"{__name__}:square", payloads), key=lambda o: o.index
    )
    assert [o.value["square"] for o in outcomes if o.value] == [0, 1, 4, 9, 16]
    assert all(o.error is None for o in outcomes)


def environment() -> dict[str, str]:
    here = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, here))}


def pids(executor: Executor, payloads: int) -> set[int]:
    outcomes = executor.map(f"{__name__}:square", [{"n": n} for n in range(payloads)])
    return {o.value["pid"] for o in outcomes if o.value}


def test_workers_reused_across_maps() -> None:
    """Workers are reused for the next payload and the next map."""
    executor = Process(2)
    first = pids(executor, 6)
    assert len(first) <= 2
    assert pids(executor, 6) <= first
    assert os.getpid() not in first
    executor.close()
    assert not any(psutil.pid_exists(pid) for pid in first)


def test_timing_runs_in_fresh_process() -> None:
    """A measurement of time or memory gets a process of its own."""
    assert len(pids(Process(2, Options(fresh_process=True)), 4)) == 4


def test_disabled_gpu_gets_no_work() -> None:
    """A disabled GPU gets no work."""
    executor = Process(2)
    payloads = [{"n": n} for n in range(4)]
    first = {o.value["pid"] for o in executor.map(f"{__name__}:nap", payloads) if o.value}
    assert len(first) == 2
    executor._gpus = {0: "a", 1: "b"}  # there are none here
    executor.exclude_gpu("b")
    assert sum(psutil.pid_exists(pid) for pid in first) == 1
    executor.exclude_gpu("a")  # the last one stays
    again = {o.value["pid"] for o in executor.map(f"{__name__}:nap", payloads) if o.value}
    assert len(again) == 1
    assert again <= first
    executor.close()


def test_killed_idle_worker_replaced() -> None:
    """An idle worker that was killed is replaced."""
    executor = Process(1)
    (first,) = pids(executor, 1)
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [], timeout=10)
    (second,) = pids(executor, 1)
    assert second != first


def test_raising_worker_replaced() -> None:
    """A worker in which an exception was raised is replaced."""
    executor = Process(1)
    payloads = [{"do": "pid"}, {"do": "raise"}, {"do": "pid"}]
    one, two, three = executor.map(f"{__name__}:misbehave", payloads)
    assert one.value
    assert three.value
    assert one.value["pid"] != three.value["pid"]
    assert "what a pity" in (two.detail or "")
    assert "misbehave" in (two.detail or ""), "the traceback"


def test_memory_freed_between_payloads(tmp_path: Path) -> None:
    """The memory of one payload is freed before the next."""
    file = str(tmp_path / "gone")
    payloads = [{"do": "leave", "file": file}, {"do": "look", "file": file}]
    _, looked = Process(1).map(f"{__name__}:misbehave", payloads)
    assert looked.value == {"gone": True}


def test_hung_worker_killed_with_stack(tmp_path: Path) -> None:
    """A hung worker is killed and its stack is reported.

    Faults 14 and 19: it is gone before its work is given to another, and can write no more.
    """
    executor = Process(1, Options(stall_timeout=2.0))
    payloads = [{"do": "hang", "file": str(tmp_path / "pid")}, {"do": "nothing"}]
    outcomes = executor.map(f"{__name__}:misbehave", payloads)
    hung = next(outcomes)
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    (fine,) = outcomes
    assert "hung: no progress" in (hung.error or "")
    assert "misbehave" in (hung.detail or ""), "the stack of the thread that hangs"
    assert fine.value == {"fine": True}


def test_heartbeat_prevents_hang_detection() -> None:
    """Work that reports progress is not taken for hung."""
    (outcome,) = Process(1, Options(stall_timeout=1.5)).map(
        f"{__name__}:misbehave", [{"do": "long"}]
    )
    assert outcome.value == {"fine": True}


def test_dead_worker_stderr_reported() -> None:
    """The last output of a dead worker is reported."""
    (outcome,) = Process(1).map(f"{__name__}:misbehave", [{"do": "groan"}])
    assert "SIGABRT" in (outcome.error or "")
    assert "corrupted unsorted chunks" in (outcome.detail or "")


def test_stop_starts_nothing_and_interrupts() -> None:
    """A stop starts no new work and asks running work to end."""
    stop: list[bool] = []
    executor = Process(1, Options(should_stop=lambda: bool(stop)))

    def payloads() -> Iterator[dict[str, Any]]:
        yield {"do": "nothing"}
        stop.append(True)
        yield {"do": "until asked"}
        raise AssertionError("a payload was taken after the stop")

    first, second = executor.map(f"{__name__}:misbehave", payloads())
    assert (first.value, second.value) == ({"fine": True}, {"asked": True})


def test_unguarded_script_not_rerun(tmp_path: Path) -> None:
    """A script without a main guard is not run by its workers."""
    script = tmp_path / "careless.py"
    script.write_text(
        "from bakeoff.study.executors.process import Process\n"
        "print('once')\n"
        "print([o.error for o in Process(1).map('test_executors:square', [{'n': 2}])])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "once\n[None]\n"


def test_program_exits_with_open_workers(tmp_path: Path) -> None:
    """A program exits although it did not close its workers."""
    script = tmp_path / "leaves.py"
    script.write_text(
        "from bakeoff.study.executors.process import Process\n"
        "p = Process(1)\n"
        "print(next(iter(p.map('test_executors:square', [{'n': 2}]))).value['square'])\n"
        "import os; os.environ['KEEP'] = str(id(p))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "4\n")


@pytest.mark.parametrize("name", NAMES)
def test_exception_is_outcome(name: str) -> None:
    """An exception in the work is an outcome."""
    payloads = [{"do": "raise"}, {"do": "nothing"}]
    first, second = make(name).map(f"{__name__}:misbehave", payloads)
    assert first.value is None
    assert first.error == "ValueError: what a pity"
    assert second.value == {"fine": True}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "inline"])
def test_dead_worker_is_outcome(name: str) -> None:
    """A dead worker is an outcome and the remaining work continues."""
    payloads = [{"do": what} for what in ("die", "exit", "nothing")]
    outcomes = sorted(make(name).map(f"{__name__}:misbehave", payloads), key=lambda o: o.index)
    killed, ended = ("worker died", "worker died") if name == "ray" else ("killed", "exit code 3")
    assert killed in (outcomes[0].error or "")
    assert ended in (outcomes[1].error or "")
    assert outcomes[2].value == {"fine": True}


@pytest.mark.parametrize("name", NAMES)
def test_payloads_taken_lazily(name: str) -> None:
    """A payload is taken only when its work can begin."""
    ended: list[int] = []
    taken: list[tuple[int, int]] = []

    def payloads() -> Iterator[dict[str, Any]]:
        for n in range(6):
            taken.append((n, len(ended)))
            yield {"n": n}

    for outcome in make(name, 2).map(f"{__name__}:square", payloads()):
        ended.append(outcome.index)
    assert sorted(ended) == list(range(6))
    assert all(n - before <= 2 for n, before in taken), taken


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "from bakeoff.study.executors.process import Process\n"
        "if __name__ == '__main__':\n"
        f"    list(Process().map('test_executors:sleep', [{{'pid_file': {str(pid_file)!r}}}]))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], env=environment())
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


def test_missing_ray_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing Ray package is reported."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(EnvironmentProblem) as error:
        list(make("ray").map(f"{__name__}:square", [{"n": 1}]))
    assert (error.value.code, error.value.exit_code) == ("ray-missing", 6)
    assert list(make("ray").map(f"{__name__}:square", [])) == []


@pytest.mark.parametrize(
    ("begun", "absent"),
    [
        ("import bakeoff.training.worker", "peft"),
        ("from bakeoff.study.executors.process import Process", "torch"),
    ],
)
def test_worker_selects_gpu_before_imports(begun: str, absent: str) -> None:
    """A worker selects its GPU before anything can query the GPUs.

    PEFT imports bitsandbytes, which asks; and the parent, which starts workers, has no torch.
    """
    code = f"import sys; {begun}; assert {absent!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="handles cannot be counted here")
def test_workers_inherit_no_handles(tmp_path: Path) -> None:
    """Workers inherit no database connection and leave no file handle open.

    Fault 33: over many segments, also where workers are replaced.
    """

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    executor = Process(2)
    with Writer(tmp_path / "study.db") as store:
        store.set("key", 1)
        (found,) = executor.map(f"{__name__}:misbehave", [{"do": "handles"}])
        assert found.value is not None
        assert found.value["open"]
        assert not [name for name in found.value["open"] if "study.db" in name]
        list(executor.map(f"{__name__}:misbehave", [{"do": "pid"}] * 2))
        before = count()
        for do in ("pid", "raise", "pid", "exit"):
            list(executor.map(f"{__name__}:misbehave", [{"do": do}] * 2))
        executor.close()
        assert count() < before, "two idle workers' pipes, no more"


def test_no_module_forks() -> None:
    """No module of bakeoff forks a process.

    Fault 33: neither SQLite's locks nor CUDA's context survive it.
    """
    for path in Path(bakeoff.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "os.fork(" not in text, path
        assert '"fork"' not in text, path
