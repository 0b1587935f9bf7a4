"""A finished trial's folder: sealed by a list of its files' hashes, which is written last.

Written by ``segment`` in a worker, read by the study half when it asks what is whole: the hashes in
``COMPLETE.json`` are those of every other file, and the hash of that list (the seal) stands beside
the trial's result in the database. A state at a rung, one file, carries its own hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files as core_files
from bakeoff.core.files import sha256_of
from bakeoff.core.results import Status, TrialResult

MANIFEST = "COMPLETE.json"
RESULT = "result.json"
TRIALS = "trials"
"""The folder of a study folder that holds the trials' folders."""
CHECKPOINTS = "state"
RETRYABLE = (Status.FAILED, Status.OUT_OF_MEMORY)
"""How a trial ends that may end otherwise when it is trained again."""


class Damage(NamedTuple):
    """What is wrong with a sealed folder: files that are gone, and files that are not the same."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        parts = [("gone", self.missing), ("changed", self.changed)]
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)


def write_manifest(folder: Path, result: TrialResult) -> None:
    """Write a trial's result beside its other files, and their hashes last, all durably.

    Raises:
        OSError: what the disk says.
    """
    core_files.atomic_write_text(folder / RESULT, json.dumps(result.to_json(), sort_keys=True))
    hashes = {}
    for file in sorted(_listed_files(folder)):
        core_files.fsync_path(
            file
        )  # what others wrote here (PEFT, safetensors) may still be in memory
        hashes[file.relative_to(folder).as_posix()] = sha256_of(file)
    for below in {(folder / name).parent for name in hashes}:
        core_files.fsync_path(below)
    core_files.atomic_write_text(folder / MANIFEST, json.dumps(hashes, indent=1))
    core_files.fsync_path(folder.parent)


def remove_manifest(folder: Path) -> None:
    """Take the seal off before anything inside is written again."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        core_files.fsync_path(folder)


def manifest_hash(folder: Path) -> str | None:
    """Return the sha256 of a folder's list of hashes, None where it has none."""
    try:
        return sha256_of(folder / MANIFEST)
    except OSError:
        return None


def find_damage(folder: Path) -> Damage | None:
    """Compare every file of a sealed folder with its hash; None where all are whole."""
    try:
        wanted = _read_manifest(folder)
    except FileNotFoundError:
        return Damage((MANIFEST,), ())
    except (OSError, ValueError, AttributeError):
        return Damage((), (MANIFEST,))
    there = {file.relative_to(folder).as_posix() for file in _listed_files(folder)}
    missing = tuple(sorted(wanted.keys() - there))
    changed = tuple(
        n for n in sorted(wanted.keys() & there) if _hash_or_none(folder / n) != wanted[n]
    )
    return Damage(missing, changed) if missing or changed else None


def read_result(folder: Path) -> TrialResult | None:
    """Return the result of a sealed folder that is whole, None of any other."""
    if find_damage(folder) is not None:
        return None
    try:
        value = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        result = TrialResult.from_json(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if result.trial_id == folder.name else None


def read_finished(folder: Path) -> TrialResult | None:
    """Return what came of a trial whose folder is whole, and that need not be trained again."""
    result = read_result(folder)
    return None if result is None or result.status in RETRYABLE else result


def copy_trial(source: Path, target: Path) -> TrialResult | None:
    """Copy a sealed folder, whole or not at all; return its result.

    None, and nothing copied, where it is not whole, holds links, or is of a trial that is to be
    tried again. ``target`` must not be there; its hashes are taken from the copy.

    Raises:
        OSError: what the disk says.
    """
    aside = target.with_name(target.name + core_files.PARTIAL_SUFFIX)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        made = aside / target.name  # its name is its trial's already: that is checked, too
        _copy_files(source, made)
        result = read_finished(made)
        if result is not None:
            made.replace(target)
            core_files.fsync_path(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return result


def _copy_files(source: Path, target: Path) -> None:
    """Copy what a list of hashes names, and the list; leave out what is gone, or a link."""
    try:
        wanted = _read_manifest(source)
    except (OSError, ValueError, AttributeError):
        return
    for file in (*_listed_files(source), source / MANIFEST):
        name = file.relative_to(source)
        if file.is_symlink() or (name.as_posix() not in wanted and file != source / MANIFEST):
            continue
        try:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
        except FileNotFoundError:
            continue  # whoever runs that study writes the trial anew
        core_files.fsync_path(target / name)
    for place, _, _ in os.walk(target):
        core_files.fsync_path(Path(place))


def checkpoint_path(trials: Path, trial_id: str, step: int) -> Path:
    """Return where a trial's state after ``step`` steps lies."""
    return trials / trial_id / CHECKPOINTS / f"{step}.safetensors"


def checkpoint_damage(path: Path) -> str | None:
    """Say what is wrong with a state at a rung, None where it is whole.

    Reads the safetensors format itself: eight bytes of length, a JSON header, the tensors' bytes.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            length = path.stat().st_size
            header = json.loads(file.read(size)) if size < length else {}
            ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
            if not ends or length != 8 + size + max(ends):
                return "it is cut off"
            metadata = header["__metadata__"]
            found = hashlib.file_digest(file, "sha256")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "it is no state"
    if metadata.get("sha256") != _add_result(found, metadata["result"]):
        return "its bytes are not those that were written"
    return None


def checkpoint_digest(raw: bytes, result: str) -> str:
    """Return the hash of a serialised state: of its tensors' bytes and its result so far."""
    start = 8 + int.from_bytes(raw[:8], "little")
    return _add_result(hashlib.sha256(memoryview(raw)[start:]), result)


def _read_manifest(folder: Path) -> dict[str, str]:
    """Read a folder's list of hashes, by file."""
    hashes: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {name: str(value) for name, value in hashes.items()}


def _add_result(tensors: hashlib._Hash, result: str) -> str:
    tensors.update(result.encode())
    return tensors.hexdigest()


def _hash_or_none(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except OSError:
        return None


def _listed_files(folder: Path) -> Iterator[Path]:
    """Yield a trial's files but the list of hashes, the states it goes on from, unfinished ones."""
    for place, names, files in os.walk(folder):
        if Path(place) == folder:
            names[:] = [n for n in names if n != CHECKPOINTS]
        own = (Path(place) / n for n in files if not n.endswith(core_files.PARTIAL_SUFFIX))
        yield from (file for file in own if file != folder / MANIFEST)
