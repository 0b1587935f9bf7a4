"""Main loop of a worker process: receive a payload, run it, send the answer.

The worker writes the time of its last progress to memory shared with the parent, and reads there
whether it should stop. It ends with its parent, when its pipe closes, and after an error.

Only torch is imported at the top. PEFT imports bitsandbytes if it is installed, which initialises
all visible GPUs; afterwards the process cannot be restricted to one.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch

from bakeoff.core.errors import describe_error
from bakeoff.core.jobs import BEAT, STOP, import_function
from bakeoff.core.worker_log import log_to_study

_PR_SET_PDEATHSIG = 1


class WorkerState:
    """Whether the worker is running a payload, for its signal handler."""

    def __init__(self) -> None:
        self.busy = False

    def handle_sigterm(self, *_: object) -> None:
        """Exit if no work would be lost; otherwise the parent decides when the work ends."""
        if not self.busy:
            os._exit(0)


class SharedFlags:
    """Heartbeat and stop request, in memory shared with the parent."""

    def __init__(self, flags: Any) -> None:
        self._flags = flags

    def beat(self) -> None:
        """Record the time of progress."""
        self._flags[BEAT] = time.monotonic()

    def stop_requested(self) -> bool:
        """Return whether the parent asked the work to stop."""
        return bool(self._flags[STOP])


def serve(
    pipe: Connection, flags: Any, output: str, parent: int, gpu: int | None, stays: bool,
    log: tuple[int, int],
) -> None:  # fmt: skip
    """Run the parent's payloads until it closes the pipe; the process's entry point.

    ``flags`` is shared memory (``core.jobs``), ``output`` a file for what libraries print, ``gpu``
    the index of the GPU to use (None: all), ``stays`` whether the worker runs several payloads,
    ``log`` the number and level of its log in the study folder.
    """
    exit_with_parent(parent)
    state = WorkerState()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    signal.signal(signal.SIGTERM, state.handle_sigterm)
    if hasattr(signal, "SIGHUP"):  # a closed terminal; the parent asks workers to stop
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    redirect_output(output)
    gpu_name = None if gpu is None else select_gpu(gpu)
    # tqdm's default lock is a named semaphore shared by processes: a killed worker would leak it,
    # and Python would warn of that at the end of the study
    import_module("tqdm").tqdm.set_lock(threading.RLock())
    from bakeoff.engine.heartbeat import listen
    from bakeoff.training.setup_cache import JobCaches

    with listen(SharedFlags(flags)), JobCaches().use() if stays else nullcontext():
        _run_payloads(pipe, output, log, gpu_name, state)


def _run_payloads(
    pipe: Connection, output: str, log: tuple[int, int], gpu_name: str | None, state: WorkerState
) -> None:
    """Run payloads until the pipe is closed, or one ends with an error."""
    from bakeoff.engine.device import free_memory, is_device_lost

    while True:
        try:
            function, payload = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        state.busy = True
        os.truncate(output, 0)  # only the output of the current payload is of interest
        answer: dict[str, Any]
        try:
            with log_to_study(payload, *log):
                answer = {"value": import_function(function)(payload), "error": None}
        except BaseException as error:  # the contract: an outcome, never an exception
            message = describe_error(error)
            answer = {"value": None, "error": message, "detail": traceback.format_exc()}
            answer["gpu_lost"] = is_device_lost(error)
        answer["gpu"] = gpu_name
        pipe.send_bytes(json.dumps(answer).encode())
        if answer["error"] is not None:
            return
        # the next payload measures free memory, and torch recompiles a function only a few times
        free_memory()
        torch.compiler.reset()
        state.busy = False


def redirect_output(path: str) -> None:
    """Send stdout and stderr to a file, so that libraries do not print to the terminal.

    Whatever the parent's encoding, and even if its streams are closed: no print raises.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if handle > 2:
        os.close(handle)
    # 1: written after each line, so that the parent has the last words of a worker that is killed
    sys.stdout = os.fdopen(1, "w", 1, "utf-8", "backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    faulthandler.enable(file=sys.stderr)


def select_gpu(place: int) -> str | None:
    """Restrict this process to one visible GPU before CUDA is initialised; return its name.

    Places share the GPUs in turn. None if there are fewer than two.
    """
    count = torch.cuda.device_count()
    if count < 2:
        return None
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(i) for i in range(count)]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[place % count]
    return names[place % count]


def exit_with_parent(parent: int) -> None:
    """End this worker when the study's process ends, for whatever reason.

    The parent-death signal alone is not enough: the worker's parent is the fork server, and some
    platforms have no such signal. A thread polls the study's process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except OSError:
                os._exit(1)
            time.sleep(1.0)

    threading.Thread(target=watch, daemon=True).start()
