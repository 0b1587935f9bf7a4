"""Transfer of a job to another machine: version checks, and the study folder's files.

If a worker cannot see the study folder, the parent packs the frozen data and the checkpoints that a
segment resumes from; the worker unpacks them into its own folder, and its outputs are sent back.
Archives are uncompressed tar, nothing is ever unpickled, and outputs may only land where a worker
may write.
"""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bakeoff.core.files import PARTIAL_SUFFIX, atomic_write_bytes
from bakeoff.core.jobs import find_segment
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import MANIFEST, TRIALS, checkpoint_path
from bakeoff.core.versions import installed_versions

SHARED_FOLDERS = ("data", "metric", "tokens")
"""Subfolders of a study folder that workers read."""


def with_folder(payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a copy of a payload with another study folder."""
    inner = find_segment(payload)
    if inner is None:
        return payload
    changed = {**inner, "folder": str(folder)}
    return {**payload, "segment": changed} if "segment" in payload else changed


def pack_shared_files(payload: dict[str, Any]) -> bytes:
    """Pack the files that every segment reads, or the user's metric for a check of it."""
    inner = find_segment(payload)
    if inner is None:
        return _pack(Path(), ())
    folder = Path(inner["folder"])
    if "trials" in inner:
        files = (
            p for name in SHARED_FOLDERS for p in (folder / name).rglob("*") if _is_complete_file(p)
        )
        return _pack(folder, files)
    metric = folder / str(inner.get("metric", "")).rpartition(":")[0]
    return _pack(folder, [metric] if metric.is_file() and metric.is_relative_to(folder) else ())


def pack_checkpoints(payload: dict[str, Any]) -> bytes:
    """Pack the checkpoints that a segment resumes from."""
    inner = find_segment(payload) or {}
    folder = Path(inner.get("folder", ""))
    return _pack(folder, [p for p in _checkpoint_paths(inner, folder) if p.is_file()])


def unpack(packed: Iterable[bytes], folder: Path) -> None:
    """Write packed files into a worker's own folder.

    ``TarFile.extractall(filter="data")`` would do the same, but needs Python 3.11.4.

    Raises:
        ValueError: a member that is no file below ``folder``.
    """
    for raw in packed:
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts or not member.name:
                    raise ValueError(f"'{member.name}' lies outside the worker's folder")
                # a second name of the same file is stored as a hard link
                source = tar.extractfile(member) if member.isreg() or member.islnk() else None
                if source is None:
                    raise ValueError(f"'{member.name}' is no regular file")
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())


def pack_outputs(payload: dict[str, Any], folder: Path) -> bytes:
    """Pack a worker's outputs: tokens, and its trials' files without the received checkpoints.

    ``payload`` names ``folder``.
    """
    inner = find_segment(payload)
    if inner is None or "trials" not in inner:
        return _pack(folder, ())
    received = set(_checkpoint_paths(inner, folder))
    files = (p for p in folder.rglob("*") if _is_complete_file(p) and p not in received)
    outputs = [p for p in files if _is_allowed_path(p.relative_to(folder).as_posix(), payload)]
    return _pack(folder, sorted(outputs, key=lambda p: p.name == MANIFEST))


def unpack_outputs(raw: bytes, payload: dict[str, Any]) -> None:
    """Write a worker's outputs into the study folder, each file atomically.

    Raises:
        ValueError: a file is one that a worker of this segment may not write.
        OSError: the folder is not writable.
    """
    inner = find_segment(payload)
    if inner is None:
        return
    folder = Path(inner["folder"])
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            if not member.isfile() or not _is_allowed_path(member.name, payload):
                raise ValueError(f"the worker sent '{member.name}', which it may not write")
            source = tar.extractfile(member)
            assert source is not None
            target = folder / member.name
            if target.exists() and member.name.startswith("tokens/"):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(target, source.read())


def version_mismatch(parents: dict[str, str]) -> str | None:
    """Return how this machine's versions differ from the parent's; None if they do not."""
    here = installed_versions()
    different = [
        f"{name} {here[name]} (parent: {version})"
        for name, version in parents.items()
        if here.get(name) not in (None, version)
    ]
    return f"node {socket.gethostname()} has {', '.join(different)}" if different else None


def cannot_run_reason(payload: dict[str, Any], sent: bool) -> str | None:
    """Return why a payload cannot run on this machine; None if it can."""
    inner, host = find_segment(payload) or {}, socket.gethostname()
    folder, base = inner.get("folder"), inner.get("base_path", "")
    if folder is not None and not sent and not Path(folder).is_dir():
        return (
            f"node {host} does not see the folder {folder}; use shared storage, "
            'or `ray_files = "sent"` under [engine]'
        )
    if Path(base).is_absolute() and not Path(base).is_dir():
        return f"node {host} does not see the base's folder {base}"
    return None


def _is_allowed_path(name: str, payload: dict[str, Any]) -> bool:
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or len(parts) < 2:
        return False
    if parts[0] == "tokens":
        return len(parts) == 2
    return (
        parts[0] == "trials"
        and len(parts) > 2
        and parts[1] in _trial_ids(find_segment(payload) or {})
    )


def _trial_ids(segment: dict[str, Any]) -> set[str]:
    return {Trial.from_json(trial).id for trial in segment.get("trials", ())}


def _checkpoint_paths(segment: dict[str, Any], folder: Path) -> Iterator[Path]:
    if segment.get("start"):
        for trial_id in sorted(_trial_ids(segment)):
            yield checkpoint_path(folder / TRIALS, trial_id, segment["start"])


def _is_complete_file(path: Path) -> bool:
    return path.is_file() and path.suffix != PARTIAL_SUFFIX


def _pack(folder: Path, files: Iterable[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in files:
            tar.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return buffer.getvalue()
