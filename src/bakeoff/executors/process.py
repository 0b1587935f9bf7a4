"""Run each payload in a fresh process, ``workers`` side by side.

A fresh process a group: what one leaves behind (memory, a poisoned CUDA context, a crash) cannot
reach the next. Processes come from a fork server that has imported the training half once, before
any thread or device was touched (``warm``): a start costs milliseconds, not seconds. Values cross
the pipe as JSON text. When the parent dies, its workers die with it.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bakeoff.executors import Outcome, resolve

PRELOAD = ["bakeoff.warm"]
_PR_SET_PDEATHSIG = 1


class Process:
    """The default executor."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        method = "forkserver" if sys.platform == "linux" else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(PRELOAD)

    def map(self, function: str, payloads: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield outcomes as their processes end."""
        waiting = enumerate(payloads)
        running: dict[Connection, tuple[int, BaseProcess]] = {}
        try:
            while True:
                for index, payload in islice(waiting, self.workers - len(running)):
                    receiver, process = self._start(function, payload)
                    running[receiver] = (index, process)
                if not running:
                    break
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    index, process = running.pop(ready)
                    yield _collect(index, ready, process)
        finally:
            for _, process in running.values():
                process.kill()

    def _start(self, function: str, payload: dict[str, Any]) -> tuple[Connection, BaseProcess]:
        receiver, sender = self._context.Pipe(duplex=False)
        text = json.dumps(payload)
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_work, args=(function, text, sender, os.getpid()), daemon=True
        )
        process.start()
        sender.close()  # so that the pipe ends when the worker does
        return receiver, process


def _collect(index: int, receiver: Connection, process: BaseProcess) -> Outcome:
    try:
        answer = json.loads(receiver.recv_bytes())
    except (EOFError, OSError):
        process.join()
        return Outcome(index, None, _cause_of_death(process.exitcode))
    finally:
        receiver.close()
    process.join()
    return Outcome(index, answer["value"], answer["error"])


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "the worker was killed: the host ran out of memory, or somebody killed it"
    if exitcode is not None and exitcode < 0:
        return f"the worker died of {signal.Signals(-exitcode).name}"
    return f"the worker ended with exit code {exitcode} and no answer"


def _work(function: str, text: str, sender: Connection, parent: int) -> None:
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answer: dict[str, Any]
    try:
        answer = {"value": resolve(function)(json.loads(text)), "error": None}
    except BaseException as error:  # the contract: an outcome, never an exception
        answer = {"value": None, "error": f"{type(error).__name__}: {error}"}
    sender.send_bytes(json.dumps(answer).encode())
    sender.close()


def _die_with(parent: int) -> None:
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


EXECUTOR = Process
