"""A headless Chromium for tests, driven over its debugging pipe with the standard library only."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """Return the first Chromium on the path."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab: commands go down the pipe, events are kept in ``events``."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._id, self._session, self._buffer = 0, "", b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of an expression."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path: Path, width: int, *, dark: bool = False, wait: str = "true") -> None:
        """Open a file and wait until ``wait`` is true."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + 60
        while not self.evaluate(f"document.readyState === 'complete' && ({wait})"):
            assert time.monotonic() < until, f"the page never came to: {wait}"
            time.sleep(0.1)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._answers.fileno(), 1 << 16)
            assert chunk, "Chromium closed its debugging pipe"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        event: dict[str, Any] = json.loads(message)
        return event


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Page]:
    """Run a browser with a new profile and give its page."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # Chromium reads descriptor 3 and writes 4; copies far above them cannot collide with either.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (to_read, from_write)]

    def place() -> None:
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    with (profile / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=(3, 4), preexec_fn=place,
        )  # fmt: skip
        for fd in (to_read, from_write, *theirs):
            os.close(fd)
        try:
            with os.fdopen(to_write, "wb") as commands, os.fdopen(from_read, "rb") as answers:
                yield Page(commands, answers)
        finally:
            process.kill()
            process.wait(20)
