"""Run payloads in parallel worker processes, each kept for further payloads.

A worker keeps its imports, its CUDA context and the base model (``engine.base_cache``). Errors
cannot affect the next payload: a worker that raised, died or stalled is replaced, and its payload's
outcome has the reason. Workers are forked from a server that has imported the training packages
once, before any thread or device was used (``training.worker_preload``). Values cross the pipes as
JSON text. Workers end when their parent dies.
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
"""Seconds between checks of the workers' heartbeats and of ``should_stop``."""
STDERR_CHARACTERS = 4000
"""Characters kept of the end of a dead worker's stderr."""


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
        """The GPU of each slot, as reported by its workers."""
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
                    item = next(waiting, None)
                    if item is None:
                        more = False
                        break
                    worker = self._take_worker({w.slot for _, w in running.values()})
                    worker.start(function, item[1])
                    running[worker.pipe] = (item[0], worker)
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
        """Assign no more work to that GPU, unless it is the last one."""
        if set(map(self._gpus.get, self._usable_slots())) - {gpu}:
            self._excluded.add(gpu)
            for worker in [w for w in self._idle_workers if self._gpus.get(w.slot) == gpu]:
                self._idle_workers.remove(worker)
                worker.end()

    def _usable_slots(self) -> list[int]:
        return [i for i in range(self.workers) if self._gpus.get(i) not in self._excluded]

    def close(self) -> None:
        """End all workers."""
        _end_workers(self._idle_workers)

    def _take_worker(self, busy_slots: set[int]) -> _WorkerProcess:
        """Return an idle worker, or start one in the first free slot."""
        while self._idle_workers:
            worker = self._idle_workers.pop()
            if worker.is_alive:
                return worker
            worker.end()
        slot = next(i for i in self._usable_slots() if i not in busy_slots)
        gpu = slot if self.options.one_gpu_each else None
        stays = not self.options.fresh_process
        return _WorkerProcess(self._context, slot, gpu, stays, self._log_level)

    def _collect(self, index: int, worker: _WorkerProcess) -> Outcome:
        answer = worker.read_result()
        if answer is None:
            return Outcome(index, None, *worker.report_death())
        gpu = self._gpus[worker.slot] = answer["gpu"]
        if answer["error"] is not None or self.options.fresh_process or gpu in self._excluded:
            # its state must not affect the next payload
            worker.end()
        else:
            self._idle_workers.append(worker)
        lost = answer.get("gpu_lost", False)
        return Outcome(index, answer["value"], answer["error"], answer.get("detail"), gpu, lost)


class _WorkerProcess:
    """Handle of one worker process in the parent."""

    def __init__(
        self, context: Any, slot: int, gpu: int | None, stays: bool, log_level: int
    ) -> None:
        self.slot = slot
        self.pipe, theirs = context.Pipe()
        self._marks = context.RawArray("d", 2)
        handle, name = tempfile.mkstemp(prefix="bakeoff-worker-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._process: BaseProcess = context.Process(
            target=_serve,
            args=(theirs, self._marks, name, os.getpid(), gpu, stays, (slot, log_level)),
            daemon=True,
        )
        with _without_main_module():
            self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def start(self, function: str, payload: dict[str, Any]) -> None:
        """Send a payload; the pipe of a worker that died while idle is at its end."""
        self._marks[BEAT] = time.monotonic()
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(json.dumps([function, payload]).encode())

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.is_alive()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the worker's last heartbeat."""
        return time.monotonic() - float(self._marks[BEAT])

    def request_stop(self) -> None:
        """Ask the worker to stop at its next safe point."""
        self._marks[STOP] = 1.0

    def read_result(self) -> dict[str, Any] | None:
        """Return the result of the work; None if the worker died."""
        try:
            result: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None
        return result

    def report_death(self) -> tuple[str, str | None]:
        """Return why the worker died, and the end of its stderr."""
        self._process.join()
        cause = _exit_reason(self._process.exitcode)
        tail = self._stderr_tail()
        self.end()
        return cause, tail

    def end_stalled(self, timeout: float) -> tuple[str, str | None]:
        """End a worker that makes no progress; return the error and the stacks of its threads."""
        pid = self._process.pid
        if pid is not None and hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # faulthandler writes the stacks
            self._process.join(2 * POLL_SECONDS)
        stacks = self._stderr_tail()
        self.end()
        return f"the worker hung: no progress for {timeout / 60:g} minutes", stacks

    def end(self) -> None:
        """Kill the worker and delete its log."""
        self._process.kill()
        self._process.join()
        self.pipe.close()
        self._log.unlink(missing_ok=True)

    def _stderr_tail(self) -> str | None:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            # faulthandler ends with a line of all imported modules, longer than the part kept
            text = "\n".join(n for n in lines if not n.startswith("Extension modules:")).strip()
            return text[-STDERR_CHARACTERS:] or None
        return None


def _serve(*args: Any) -> None:
    """Run a worker; resolved by name, because the parent does not import the training packages."""
    _, _, output, *_ = args
    handle = os.open(output, os.O_WRONLY | os.O_APPEND)  # before imports, which may print
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    import_function(jobs.SERVE)(*args)


def _end_workers(workers: list[_WorkerProcess]) -> None:
    while workers:
        workers.pop().end()


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main module: multiprocessing would run the user's script again in workers."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _exit_reason(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "the worker was killed: the host ran out of memory, or a user killed it"
    if exitcode is not None and exitcode < 0:
        return f"the worker died of {signal.Signals(-exitcode).name}"
    return f"the worker ended with exit code {exitcode} and without a result"


EXECUTOR = Process
