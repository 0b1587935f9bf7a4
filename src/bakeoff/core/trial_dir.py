"""A trial's folder: its checkpoints, and the checksum manifest that marks it as finished.

``COMPLETE.json`` holds the sha256 of every other file and is written last. The sha256 of the
manifest itself is stored with the trial's result in the database (``seal``). A checkpoint at a
rung is one safetensors file that carries its own hash.
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
from bakeoff.core.safe_read import read_header

TRIALS = "trials"
"""The folder of a study folder that holds one folder for each trial."""
MANIFEST = "COMPLETE.json"
RESULT = "result.json"
CHECKPOINTS = "state"
"""The folder of a trial's folder that holds its checkpoints."""
NO_DIGEST = "0" * 64
"""What a checkpoint has in place of its sha256 while it is written."""
RETRYABLE = (Status.FAILED, Status.OUT_OF_MEMORY)
"""Outcomes that may differ when the trial runs again."""


class Damage(NamedTuple):
    """Files of a finished trial that are missing, and files whose bytes have changed."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        parts = [("gone", self.missing), ("changed", self.changed)]
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)


def write_manifest(folder: Path, result: TrialResult) -> None:
    """Write a trial's result next to its other files, then the manifest; sync all of them.

    Raises:
        OSError: the file system refuses.
    """
    core_files.atomic_write_text(folder / RESULT, json.dumps(result.to_json(), sort_keys=True))
    hashes = {}
    for file in sorted(_listed_files(folder)):
        core_files.fsync_path(file)  # PEFT and safetensors do not sync what they write
        hashes[file.relative_to(folder).as_posix()] = sha256_of(file)
    for below in {(folder / name).parent for name in hashes}:
        core_files.fsync_path(below)
    core_files.atomic_write_text(folder / MANIFEST, json.dumps(hashes, indent=1))
    core_files.fsync_path(folder.parent)


def remove_manifest(folder: Path) -> None:
    """Remove the manifest, before any other file of the folder is written again."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        core_files.fsync_path(folder)


def manifest_hash(folder: Path) -> str | None:
    """Return the sha256 of a folder's manifest, None without one."""
    try:
        return sha256_of(folder / MANIFEST)
    except OSError:
        return None


def weights_hash(folder: Path) -> str | None:
    """Return one hash of the weights that a finished trial saved; None if there are none."""
    try:
        files = _read_manifest(folder)
    except (OSError, ValueError, AttributeError):
        return None
    hashes = sorted(digest for name, digest in files.items() if name.endswith(".safetensors"))
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None


def find_damage(folder: Path) -> Damage | None:
    """Compare every file of a finished trial with the manifest; return None if all match."""
    try:
        expected = _read_manifest(folder)
    except FileNotFoundError:
        return Damage((MANIFEST,), ())
    except (OSError, ValueError, AttributeError):
        return Damage((), (MANIFEST,))
    present = {file.relative_to(folder).as_posix() for file in _listed_files(folder)}
    missing = tuple(sorted(expected.keys() - present))
    both = sorted(expected.keys() & present)
    changed = tuple(n for n in both if _hash_or_none(folder / n) != expected[n])
    return Damage(missing, changed) if missing or changed else None


def read_result(folder: Path) -> TrialResult | None:
    """Return the result of a finished and undamaged trial, None for any other folder."""
    if find_damage(folder) is not None:
        return None
    try:
        value = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        result = TrialResult.from_json(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if result.trial_id == folder.name else None


def read_finished(folder: Path) -> TrialResult | None:
    """Return the result as ``read_result`` does, None also if the trial should run again."""
    result = read_result(folder)
    return None if result is None or result.status in RETRYABLE else result


def copy_trial(source: Path, target: Path) -> TrialResult | None:
    """Copy a finished trial to ``target``, which must not exist; return its result.

    Returns None and copies nothing if the folder is damaged, holds symbolic links, or its trial
    should run again. The hashes are checked on the copy.

    Raises:
        OSError: the file system refuses.
    """
    temporary = target.with_name(target.name + core_files.PARTIAL_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        copied = temporary / target.name  # named as the trial already: read_result compares them
        _copy_files(source, copied)
        result = read_finished(copied)
        if result is not None:
            copied.replace(target)
            core_files.fsync_path(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def _copy_files(source: Path, target: Path) -> None:
    """Copy the manifest and the files that it names; skip missing files and symbolic links."""
    try:
        expected = _read_manifest(source)
    except (OSError, ValueError, AttributeError):
        return
    for file in (*_listed_files(source), source / MANIFEST):
        name = file.relative_to(source)
        if file.is_symlink() or (name.as_posix() not in expected and file != source / MANIFEST):
            continue
        try:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
        except FileNotFoundError:
            continue  # the process that runs the source study is writing this trial again
        core_files.fsync_path(target / name)
    for place, _, _ in os.walk(target):
        core_files.fsync_path(Path(place))


def checkpoint_path(trials: Path, trial_id: str, step: int) -> Path:
    """Return the path of a trial's checkpoint after ``step`` steps."""
    return trials / trial_id / CHECKPOINTS / f"{step}.safetensors"


def checkpoint_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if it is intact."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = read_header(file, size)
            if header is None or not header.tensors or size != header.end:
                return "it is cut off"
            result = header.metadata["result"]
            digest = _add_result(hashlib.file_digest(file, "sha256"), result)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it is no checkpoint"
    if header.metadata.get("sha256") != digest:
        return "its bytes are not those that were written"
    return None


def write_checkpoint_digest(path: Path) -> None:
    """Replace ``NO_DIGEST`` in a checkpoint's header by the hash of its tensors and its result."""
    key = b'"sha256":"'
    with path.open("r+b") as file:
        header = read_header(file, path.stat().st_size)
        assert header is not None
        digest = _add_result(hashlib.file_digest(file, "sha256"), header.metadata["result"])
        file.seek(0)
        # inside the result, which is a string, quotation marks are escaped
        place = file.read(header.begin).index(key + NO_DIGEST.encode())
        file.seek(place + len(key))
        file.write(digest.encode())


def _read_manifest(folder: Path) -> dict[str, str]:
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
    """Yield the files that the manifest lists: all but itself, checkpoints and partial files."""
    for place, names, files in os.walk(folder):
        if Path(place) == folder:
            names[:] = [n for n in names if n != CHECKPOINTS]
        complete = (Path(place) / n for n in files if not n.endswith(core_files.PARTIAL_SUFFIX))
        yield from (file for file in complete if file != folder / MANIFEST)
