"""The cache of prepared models; a folder in it is complete or absent.

A folder is filled under a hidden name, gets its marker last and is renamed, so that a crash leaves
nothing that looks prepared. A lock file excludes other processes. The sha256 of the weights is
compared with the marker before a folder is used.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.files import sha256_of
from bakeoff.core.names import expand_home
from bakeoff.data.assets.registry import WEIGHTS

MARKER = "bakeoff-asset.json"
DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT}
ACCESS_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
CHANGE_CACHE = "point BAKEOFF_CACHE at a folder that you can write to, with enough free space."


@dataclass(frozen=True)
class Marker:
    """Metadata of a prepared folder; ``sha256`` is that of its weights."""

    name: str
    source: str
    version: str
    sha256: str
    source_sha256: str
    licence: str
    note: str | None


def cache_folder() -> Path:
    """Return ``$BAKEOFF_CACHE``, ``$XDG_CACHE_HOME/bakeoff`` or ``~/.cache/bakeoff``."""
    if chosen := os.environ.get("BAKEOFF_CACHE"):
        return expand_home(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bakeoff"


def model_folder(name: str) -> Path:
    """Return the folder for a prepared model, which may not exist."""
    return cache_folder() / "models" / name


def is_intact(folder: Path, source_sha256: str) -> bool:
    """Tell whether a folder was prepared from this source and its weights are unchanged."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if marker["source_sha256"] != source_sha256:
            return False
        return bool(marker["sha256"] == sha256_of(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def model_lock(name: str, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of one model; wait, and report it, while another process prepares the model."""
    folder = model_folder(name)
    with translate_os_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f"{name}.lock")
    try:
        with translate_os_errors():
            lock.acquire(timeout=0)
    except Timeout:
        progress(f"{name}: waiting for another process that is preparing it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging_folder(name: str, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty folder to fill; then make it the model's folder, or delete it on an error.

    The lock must be held. Leftovers of killed processes are removed first.

    Raises:
        EnvironmentProblem: ``asset-disk`` or ``asset-cache``.
    """
    final = model_folder(name)
    with translate_os_errors():
        for leftover in final.parent.glob(f".{name}-*"):
            shutil.rmtree(leftover)
        check_free_space(final.parent, needed_bytes)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=final.parent))
    try:
        with translate_os_errors():
            yield staging
            staging.chmod(0o755)  # mkdtemp makes it private, but the cache may be shared
            if final.exists():
                shutil.rmtree(final)
            staging.replace(final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_marker(folder: Path, marker: Marker) -> None:
    """Write the marker that marks a folder as prepared; without a time, so it is reproducible."""
    text = json.dumps(asdict(marker), indent=2) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start if the disk has not enough free space.

    Raises:
        EnvironmentProblem: ``asset-disk``.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise EnvironmentProblem(
            "asset-disk",
            f"{folder} has {free / 1e6:.0f} MB free; {needed_bytes / 1e6:.0f} MB are needed.",
            f"free some space, or {CHANGE_CACHE}",
        )


@contextmanager
def translate_os_errors() -> Iterator[None]:
    """Turn errors of the file system into errors with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS | ACCESS_ERRORS:
            raise
        code = "asset-disk" if error.errno in DISK_FULL_ERRORS else "asset-cache"
        cause = f"The cache cannot be written: {error}."
        raise EnvironmentProblem(code, cause, CHANGE_CACHE) from error
