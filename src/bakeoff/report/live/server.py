"""The server on this machine: a port, the address with its token, and a browser that opens it."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import uvicorn

from bakeoff.core.errors import EnvironmentProblem, UsageError
from bakeoff.report.live.access import ANY_ADDRESS, LOOPBACK, Access, Guard, host_names
from bakeoff.report.live.app import make_app
from bakeoff.report.live.studies import Studies

PORT = 8757
"""Where the view is, unless that port is taken."""


class ServerOptions(NamedTuple):
    """Where to serve, and whether to open a browser."""

    host: str = LOOPBACK[0]
    port: int | None = None
    allow_remote: bool = False
    browser: bool = False


class BoundServer(NamedTuple):
    """A server that is about to run: its socket is bound, its secrets are made."""

    guard: Guard
    bound: socket.socket
    stopping: threading.Event
    host: str
    port: int

    @property
    def address(self) -> str:
        """Where it is, without the token."""
        name = LOOPBACK[0] if self.host in ANY_ADDRESS else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    @property
    def url(self) -> str:
        """The address that lets whoever has it in."""
        return f"{self.address}?token={self.guard.access.token}"


class Server(uvicorn.Server):
    """uvicorn's server, whose end ends the streams of open pages too."""

    stopping: threading.Event

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal."""
        self.stopping.set()
        super().handle_exit(sig, frame)


def bind_server(folders: Sequence[Path], wishes: ServerOptions) -> BoundServer:
    """Bind the port and make the secrets; nothing is served before ``serve``.

    Raises:
        UsageError: ``view-remote``, ``no-study``.
        EnvironmentProblem: ``port-taken``, ``host-unknown``.
    """
    if wishes.host not in LOOPBACK and not wishes.allow_remote:
        raise UsageError(
            "view-remote",
            f"--host {wishes.host} can be reached from other machines, and what they are sent "
            "is not encrypted.",
            f"an ssh tunnel: `ssh -L {wishes.port or PORT}:127.0.0.1:{wishes.port or PORT} "
            "MACHINE` (docs/view.md); or `--allow-remote`.",
        )
    studies = Studies(folders)
    bound = _bind(wishes)
    port = int(bound.getsockname()[1])
    access = Access(port, host_names(wishes.host))
    stopping = threading.Event()
    found = studies.all()
    alone = len(folders) == 1 and [f.folder for f in found] == [folders[0].resolve()]
    landing = f"/studies/{found[0].id}" if alone else "/"
    guard = Guard(make_app(studies, stopping), access, landing)
    return BoundServer(guard, bound, stopping, wishes.host, port)


def serve(opened: BoundServer, wishes: ServerOptions) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    server = make_server(opened)
    if wishes.browser:
        url = f"{opened.address}?token={opened.guard.access.once}"
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    else:
        opened.guard.access.once = None
    with contextlib.closing(opened.bound), contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[opened.bound])


def make_server(opened: BoundServer) -> Server:
    """Return the server that is to run on what was opened."""
    config = uvicorn.Config(
        opened.guard,
        access_log=False,  # the first line of it would hold the token
        log_config=None,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = Server(config)
    server.stopping = opened.stopping
    return server


def _bind(wishes: ServerOptions) -> socket.socket:
    wanted = PORT if wishes.port is None else wishes.port
    try:
        return _listen(wishes.host, wanted)
    except OSError as error:
        if wishes.port is None:
            with contextlib.suppress(OSError):
                return _listen(wishes.host, 0)
        raise EnvironmentProblem(
            "port-taken",
            f"Port {wanted} of {wishes.host} cannot be used: {error.strerror or error}.",
            "another one: `--port`.",
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(64)
    except OSError:
        made.close()
        raise
    return made
