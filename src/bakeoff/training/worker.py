"""A worker of ``executors.process``, from the inside: take a payload, do it, answer, wait.

It says that work goes on by writing the time where the parent reads it, and reads there whether it
is asked to stop (``engine.pulse``). It ends with its parent, with its pipe, and after an error.

Only torch is imported at the top: PEFT imports bitsandbytes where it is installed, which asks for
the GPUs at once, and a process that has seen them all cannot be given one any more.
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
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch

from bakeoff.core.jobs import BEAT, STOP, import_function

_PR_SET_PDEATHSIG = 1


class WorkerState:
    """Whether work is at hand: the parent alone says when that ends."""

    def __init__(self) -> None:
        self.busy = False

    def terminated(self, *_: object) -> None:
        """End, if nothing would be lost by it."""
        if not self.busy:
            os._exit(0)


class SharedFlags:
    """Listens to the training loop, for the parent."""

    def __init__(self, marks: Any) -> None:
        self._marks = marks

    def beat(self) -> None:
        self._marks[BEAT] = time.monotonic()

    def stop_requested(self) -> bool:
        return bool(self._marks[STOP])


def serve(
    pipe: Connection, marks: Any, log: str, parent: int, gpu: int | None, stays: bool
) -> None:
    """Work for the parent until it hangs up."""
    exit_with_parent(parent)
    state = WorkerState()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    signal.signal(signal.SIGTERM, state.terminated)
    if hasattr(signal, "SIGHUP"):  # a terminal that went away; the parent asks for the end
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    redirect_output(log)
    own = None if gpu is None else select_gpu(gpu)
    # a progress bar's lock is for all processes, a semaphore with a name: one that is killed leaves
    # it behind, and Python complains of that at the study's end
    import_module("tqdm").tqdm.set_lock(threading.RLock())
    from bakeoff.engine.base_cache import BaseCache
    from bakeoff.engine.device import free_memory, is_device_lost
    from bakeoff.engine.heartbeat import Pulse

    Pulse.listener = SharedFlags(marks)
    BaseCache.on = stays
    while True:
        try:
            function, payload = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        state.busy = True
        os.truncate(log, 0)  # of what ended well nobody wants the last words
        answer: dict[str, Any]
        try:
            answer = {"value": import_function(function)(payload), "error": None}
        except BaseException as error:  # the contract: an outcome, never an exception
            said = f"{type(error).__name__}: {error}"
            answer = {"value": None, "error": said, "detail": traceback.format_exc()}
            answer["gpu_lost"] = is_device_lost(error)
        answer["gpu"] = own
        pipe.send_bytes(json.dumps(answer).encode())
        if answer["error"] is not None:
            return
        # memory is measured by what is free, and a function is compiled anew only a few times
        free_memory()
        torch.compiler.reset()
        state.busy = False


def redirect_output(log: str) -> None:
    """Send what libraries print to a file: the terminal is the parent's."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    faulthandler.enable(file=sys.stderr)


def select_gpu(place: int) -> str | None:
    """See one of the visible GPUs alone, taken in turn, before CUDA is touched; return its name.

    None where there are not several to choose from.
    """
    count = torch.cuda.device_count()
    if count < 2:
        return None
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(i) for i in range(count)]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[place % count]
    return names[place % count]


def exit_with_parent(parent: int) -> None:
    """End this worker when the parent ends, however that happens.

    The fork server is the worker's real parent and lives as long as the study's process does; a
    watching thread covers both that and platforms without a parent-death signal.
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
