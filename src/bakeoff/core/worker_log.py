"""Worker log files, and silence for what libraries print.

Log files are ``logs/worker-<n>.log`` in the study folder.

The level comes from ``--log-level`` or the environment variable ``BAKEOFF_LOG_LEVEL``. It is no
part of a study's settings and never changes a result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bakeoff.core.errors import unknown_name
from bakeoff.core.jobs import find_segment
from bakeoff.core.redact import sanitize

FOLDER = "logs"
LEVEL_VARIABLE = "BAKEOFF_LOG_LEVEL"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
DEFAULT_LEVEL = "warning"
QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "BITSANDBYTES_NOWELCOME": "1",
}
"""Variables that silence libraries; those that the user has set stay."""
_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def parse_level(name: str) -> int:
    """Return the number of a level's name, in any case.

    Raises:
        UsageError: ``unknown-log-level``.
    """
    level = LEVELS.get(name.lower())
    if level is None:
        raise unknown_name("unknown-log-level", "log level", name, LEVELS)
    return level


def configured_level() -> int:
    """Return the level that the environment sets for workers.

    Raises:
        UsageError: ``unknown-log-level``.
    """
    return parse_level(os.environ.get(LEVEL_VARIABLE) or DEFAULT_LEVEL)


@contextlib.contextmanager
def use_level(name: str) -> Iterator[None]:
    """Set the level for the executors that are created inside the block.

    Raises:
        UsageError: ``unknown-log-level``.
    """
    parse_level(name)
    before = os.environ.get(LEVEL_VARIABLE)
    os.environ[LEVEL_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[LEVEL_VARIABLE]
        else:
            os.environ[LEVEL_VARIABLE] = before


@contextlib.contextmanager
def log_to_study(payload: Mapping[str, Any], worker: str | int, level: int) -> Iterator[None]:
    """Write bakeoff's log records to the log file of a worker while it runs a payload.

    The file is created with the first record. Only segments are logged: the folder of another
    payload may be the user's own.
    """
    segment = find_segment(payload)
    if segment is None or "trials" not in segment:
        yield
        return
    path = Path(segment["folder"]) / FOLDER / f"worker-{worker}.log"
    with _log_to(_StudyLogHandler(path), level):
        yield


@contextlib.contextmanager
def log_to_stderr(level: int) -> Iterator[None]:
    """Write bakeoff's log records to stderr, for workers that do not see the study folder."""
    with _log_to(logging.StreamHandler(), level):
        yield


@contextlib.contextmanager
def _log_to(handler: logging.Handler, level: int) -> Iterator[None]:
    handler.setFormatter(_SafeFormatter(_FORMAT, "%Y-%m-%dT%H:%M:%SZ"))
    logger = logging.getLogger("bakeoff")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk: what is buffered cannot be written
            handler.close()


class _StudyLogHandler(logging.FileHandler):
    """Appends to a file in a study folder. A log that cannot be written does not stop any work."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; create the folder and the file before the first one."""
        with contextlib.suppress(OSError):
            if self.stream is None:
                Path(self.baseFilename).parent.mkdir(exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Ignore errors of writing."""


class _SafeFormatter(logging.Formatter):
    """Formats records in UTC, on indented lines, without secrets or control characters.

    Messages contain error texts of libraries, which may quote untrusted data.
    """

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return sanitize(super().format(record)).replace("\n", "\n    ")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Ignore Python warnings and log records up to WARNING; restore both afterwards.

    Workers stay alive between payloads, so logging must be restored after an exception too.
    """
    previous = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)


def quiet_command_line() -> None:
    """Hide what libraries print in the process of the command line, for the rest of its life.

    Python warnings stay if the user asked for them (``python -W``, ``PYTHONWARNINGS``), and so do
    bakeoff's own log records. An error is an exception, which is printed.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if logging.lastResort is not None:  # prints the records of loggers without a handler
        logging.lastResort.addFilter(_is_own_record)


def _is_own_record(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "bakeoff"


@contextlib.contextmanager
def discard_output() -> Iterator[None]:
    """Drop all that is printed inside the block, also by libraries in C; an exception is not."""
    try:
        saved = [os.dup(1), os.dup(2)]
    except OSError:  # closed: nothing can be printed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for place, handle in enumerate(saved, start=1):
            os.dup2(handle, place)
            os.close(handle)
        os.close(nowhere)
