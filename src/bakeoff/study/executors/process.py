"""Run payloads in worker processes, ``workers`` side by side, each kept for the next payload.

A worker keeps what it has imported, its CUDA context and the base (``engine.resident``). What goes
wrong in one cannot reach the next payload: a worker in which anything was raised, which died or
which made no progress for too long is replaced, and its payload's outcome says why. Workers come
from a fork server that has imported the training half once, before any thread or device was
touched (``warm``). Values cross the pipes as JSON text. When the parent dies, its workers die with
it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bakeoff.core import jobs, worker_log
from bakeoff.core.jobs import BEAT, STOP, import_function
from bakeoff.study.executors import Options, Outcome

POLL_SECONDS = 1.0
"""Seconds between two looks at the workers' pulses and at whether to stop."""
STDERR_CHARACTERS = 4000
"""Characters of a dead worker's stderr that are kept."""


class Process:
    """The default executor."""

    def __init__(self, workers: int = 1, options: Options = Options()) -> None:  # noqa: B008  # frozen
        self.workers = workers
        self.options = options
        # handed to each worker: the fork server keeps the environment that it was started with
        self._log_level = worker_log.configured_level()
        method = "forkserver" if sys.platform == "linux" else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(jobs.PRELOAD)
        self._idle_workers: list[_WorkerProcess] = []
        self._gpus: dict[int, str | None] = {}
        """The GPU of each place, as its workers have said."""
        self._excluded: set[str] = set()
        weakref.finalize(self, _end_workers, self._idle_workers)

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield outcomes as their work ends."""
        waiting = enumerate(payloads)
        running: dict[Connection, tuple[int, _WorkerProcess]] = {}
        more = True
        try:
            while True:
                while (
                    more
                    and len(running) < len(self._usable_slots())
                    and not self.options.should_stop()
                ):
                    taken = next(waiting, None)
                    if taken is None:
                        more = False
                        break
                    worker = self._take_worker({w.place for _, w in running.values()})
                    worker.begin(function, taken[1])
                    running[worker.pipe] = (taken[0], worker)
                if not running:
                    break
                for ready in wait(list(running), POLL_SECONDS):
                    assert isinstance(ready, Connection)
                    index, worker = running.pop(ready)
                    yield self._collect(index, worker)
                for pipe, (index, worker) in list(running.items()):
                    if self.options.should_stop():
                        worker.request_stop()
                    if worker.silent_seconds > self.options.stall_timeout:
                        del running[pipe]
                        yield Outcome(index, None, *worker.end_stalled(self.options.stall_timeout))
        finally:
            for _, worker in running.values():
                worker.end()

    def exclude_gpu(self, gpu: str) -> None:
        """Give no more work to that GPU; the last one stays."""
        if set(map(self._gpus.get, self._usable_slots())) - {gpu}:
            self._excluded.add(gpu)
            for worker in [w for w in self._idle_workers if self._gpus.get(w.place) == gpu]:
                self._idle_workers.remove(worker)
                worker.end()

    def _usable_slots(self) -> list[int]:
        return [i for i in range(self.workers) if self._gpus.get(i) not in self._excluded]

    def close(self) -> None:
        """Let the workers go."""
        _end_workers(self._idle_workers)

    def _take_worker(self, taken: set[int]) -> _WorkerProcess:
        """Return an idle worker, or a new one in the first free place."""
        while self._idle_workers:
            worker = self._idle_workers.pop()
            if worker.is_alive:
                return worker
            worker.end()
        place = next(i for i in self._usable_slots() if i not in taken)
        gpu = place if self.options.one_gpu_each else None
        stays = not self.options.fresh_process
        return _WorkerProcess(self._context, place, gpu, stays, self._log_level)

    def _collect(self, index: int, worker: _WorkerProcess) -> Outcome:
        answer = worker.read_result()
        if answer is None:
            return Outcome(index, None, *worker.report_death())
        gpu = self._gpus[worker.place] = answer["gpu"]
        if answer["error"] is not None or self.options.fresh_process or gpu in self._excluded:
            # whatever it left behind must not reach the next payload
            worker.end()
        else:
            self._idle_workers.append(worker)
        lost = answer.get("gpu_lost", False)
        return Outcome(index, answer["value"], answer["error"], answer.get("detail"), gpu, lost)


class _WorkerProcess:
    """One worker process, seen from the parent."""

    def __init__(
        self, context: Any, place: int, gpu: int | None, stays: bool, log_level: int
    ) -> None:
        self.place = place
        self.pipe, theirs = context.Pipe()
        self._marks = context.RawArray("d", 2)
        handle, name = tempfile.mkstemp(prefix="bakeoff-worker-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._process: BaseProcess = context.Process(
            target=_serve,
            args=(theirs, self._marks, name, os.getpid(), gpu, stays, (place, log_level)),
            daemon=True,
        )
        with _without_main_module():
            self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def begin(self, function: str, payload: dict[str, Any]) -> None:
        """Hand a payload over; one that died while it was idle answers with its end."""
        self._marks[BEAT] = time.monotonic()
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(json.dumps([function, payload]).encode())

    @property
    def is_alive(self) -> bool:
        """Say whether the process is there."""
        return self._process.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the worker last said that its work goes on."""
        return time.monotonic() - float(self._marks[BEAT])

    def request_stop(self) -> None:
        """Ask for the end of the work at its next safe point."""
        self._marks[STOP] = 1.0

    def read_result(self) -> dict[str, Any] | None:
        """Return what the work gave; None where the worker died."""
        try:
            found: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None
        return found

    def report_death(self) -> tuple[str, str | None]:
        """Say what the worker died of, with its last words."""
        self._process.join()
        cause = _exit_reason(self._process.exitcode)
        words = self._stderr_tail()
        self.end()
        return cause, words

    def end_stalled(self, patience: float) -> tuple[str, str | None]:
        """End a worker that makes no progress; say so, with the stacks of its threads."""
        pid = self._process.pid
        if pid is not None and hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # faulthandler writes the stacks
            self._process.join(2 * POLL_SECONDS)
        words = self._stderr_tail()
        self.end()
        return f"the worker hung: no progress for {patience / 60:g} minutes", words

    def end(self) -> None:
        """Kill the worker and remove what it wrote."""
        self._process.kill()
        self._process.join()
        self.pipe.close()
        self._log.unlink(missing_ok=True)

    def _stderr_tail(self) -> str | None:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            # faulthandler ends with a line of all that was imported, longer than what is kept
            text = "\n".join(n for n in lines if not n.startswith("Extension modules:")).strip()
            return text[-STDERR_CHARACTERS:] or None
        return None


def _serve(*given: Any) -> None:
    """Begin a worker; by name, because the parent imports nothing that trains."""
    import_function(jobs.SERVE)(*given)


def _end_workers(workers: list[_WorkerProcess]) -> None:
    while workers:
        workers.pop().end()


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the program's main module: workers would run the user's script once more."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def _exit_reason(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "the worker was killed: the host ran out of memory, or somebody killed it"
    if exitcode is not None and exitcode < 0:
        return f"the worker died of {signal.Signals(-exitcode).name}"
    return f"the worker ended with exit code {exitcode} and no answer"


EXECUTOR = Process
