"""The live view as it is served: on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bakeoff.report.live import server
from bakeoff.report.live.server import BoundServer, ServerOptions


@contextmanager
def run_server(folders: Sequence[Path]) -> Iterator[BoundServer]:
    """Serve some folders, and stop when left."""
    opened = server.bind_server(folders, ServerOptions(port=0))
    running = server.make_server(opened)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [opened.bound]})
    thread.start()
    try:
        until = time.monotonic() + 20
        while not running.started:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.02)
        yield opened
    finally:
        opened.stopping.set()
        running.should_exit = True
        thread.join(20)
        opened.bound.close()
        assert not thread.is_alive()
