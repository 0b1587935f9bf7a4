"""The server of the live view: its port, its address with a token, and a browser to open it."""

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
"""The default port, unless it is in use."""


class ServerOptions(NamedTuple):
    """Options of the server: where to serve, and whether to open a browser."""

    host: str = LOOPBACK[0]
    port: int | None = None
    allow_remote: bool = False
    browser: bool = False


class BoundServer(NamedTuple):
    """A server that is ready to run: its socket is bound, its secrets are created."""

    guard: Guard
    bound: socket.socket
    stopping: threading.Event
    host: str
    port: int

    @property
    def address(self) -> str:
        """The address without the token."""
        name = LOOPBACK[0] if self.host in ANY_ADDRESS else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"

    @property
    def url(self) -> str:
        """The address with the token, which grants access."""
        return f"{self.address}?token={self.guard.access.token}"


class Server(uvicorn.Server):
    """A uvicorn server that also ends the event streams of open pages when it stops."""

    stopping: threading.Event

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal."""
        self.stopping.set()
        super().handle_exit(sig, frame)


def bind_server(folders: Sequence[Path], options: ServerOptions) -> BoundServer:
    """Bind the port and create the secrets; nothing is served before ``serve``.

    Raises:
        UsageError: ``view-remote``, ``no-study``.
        EnvironmentProblem: ``port-taken``, ``host-unknown``.
    """
    if options.host not in LOOPBACK and not options.allow_remote:
        raise UsageError(
            "view-remote",
            f"--host {options.host} is reachable from other machines, and the connection is not "
            "encrypted.",
            f"an ssh tunnel: `ssh -L {options.port or PORT}:127.0.0.1:{options.port or PORT} "
            "MACHINE` (docs/view.md); or `--allow-remote`.",
        )
    studies = Studies(folders)
    bound_socket = _bind(options)
    port = int(bound_socket.getsockname()[1])
    access = Access(port, host_names(options.host))
    stopping = threading.Event()
    feeds = studies.all()
    single = len(folders) == 1 and [f.folder for f in feeds] == [folders[0].resolve()]
    landing = f"/studies/{feeds[0].id}" if single else "/"
    guard = Guard(make_app(studies, stopping), access, landing)
    return BoundServer(guard, bound_socket, stopping, options.host, port)


def serve(opened: BoundServer, options: ServerOptions) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    server = make_server(opened)
    if options.browser:
        url = f"{opened.address}?token={opened.guard.access.single_use_code}"
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    else:
        opened.guard.access.single_use_code = None
    with contextlib.closing(opened.bound), contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[opened.bound])


def make_server(opened: BoundServer) -> Server:
    """Return the uvicorn server for a bound socket."""
    config = uvicorn.Config(
        opened.guard,
        access_log=False,  # its first line would contain the token
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


def _bind(options: ServerOptions) -> socket.socket:
    port = PORT if options.port is None else options.port
    try:
        return _listen(options.host, port)
    except OSError as error:
        if options.port is None:
            with contextlib.suppress(OSError):
                return _listen(options.host, 0)
        raise EnvironmentProblem(
            "port-taken",
            f"Port {port} of {options.host} cannot be used: {error.strerror or error}.",
            "another port: `--port`.",
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener
