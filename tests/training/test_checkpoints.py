"""Checkpoints: what is written is read, damage is refused, several are written at once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialize

from bakeoff.core import trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import Status, TrialResult
from bakeoff.training import checkpoints
from bakeoff.training.checkpoints import Checkpoint

PLACEHOLDER = f'a text with "sha256":"{trial_dir.NO_DIGEST}" in it'


def make_checkpoint(number: int = 0) -> Checkpoint:
    """Return a checkpoint with tensors of several types and shapes."""
    lane = {"values": torch.arange(5.0) + number, "step": torch.tensor(3), "none": torch.empty(0)}
    hook = {"ranks|a.b": torch.ones(2, 3, dtype=torch.bfloat16)}
    result = TrialResult(f"trial{number}", Status.STOPPED, step=30, warnings=(PLACEHOLDER,))
    return Checkpoint(lane, hook, result, torch.tensor([0.5, 0.25]))


def path_of(folder: Path, number: int = 0) -> Path:
    return trial_dir.checkpoint_path(folder / "trials", f"trial{number}", 30)


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.result == expected.result
    for one, two in ((found.lane, expected.lane), (found.hook, expected.hook)):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)
    assert found.pending_losses is not None
    assert expected.pending_losses is not None
    assert torch.equal(found.pending_losses, expected.pending_losses)


def test_saved_checkpoints_are_loaded(tmp_path: Path) -> None:
    """Checkpoints of a group are loaded in order as they were saved; only their files are left."""
    saved = [make_checkpoint(n) for n in range(5)]
    paths = [path_of(tmp_path, n) for n in range(5)]
    checkpoints.save_all(zip(paths, saved, strict=True))
    assert [trial_dir.checkpoint_damage(p) for p in paths] == [None] * 5
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == paths
    for found, expected in zip(checkpoints.load_all(paths, "cpu"), saved, strict=True):
        assert_equal(found, expected)


def test_checkpoint_of_earlier_version_is_loaded(tmp_path: Path) -> None:
    """A checkpoint whose digest was computed before it was written is loaded."""
    expected, path = make_checkpoint(), path_of(tmp_path)
    result = json.dumps(expected.result.to_json())
    hook = {f"hook/{n}": t for n, t in expected.hook.items()}
    assert expected.pending_losses is not None
    tensors = {**expected.lane, **hook, "unread": expected.pending_losses}
    raw = serialize(tensors, {"result": result})
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :] + result.encode())
    path.parent.mkdir(parents=True)
    path.write_bytes(serialize(tensors, {"result": result, "sha256": digest.hexdigest()}))
    assert trial_dir.checkpoint_damage(path) is None
    assert_equal(checkpoints.load(path, "cpu"), expected)


@pytest.mark.parametrize("part", ["tensors", "result", "digest", "end", "file"])
def test_damaged_checkpoint_is_refused(part: str, tmp_path: Path) -> None:
    """A checkpoint is refused if a bit of it differs, or a part of it is missing."""
    path = checkpoints.save(path_of(tmp_path), make_checkpoint())
    raw = bytearray(path.read_bytes())
    places = {"tensors": -1, "result": raw.index(b"STOPPED".lower()), "digest": raw.rindex(b"256")}
    if part in places:
        raw[places[part] + (8 if part == "digest" else 0)] ^= 1
    path.write_bytes(raw[:-1] if part == "end" else raw)
    if part == "file":
        path.unlink()
    with pytest.raises(EnvironmentProblem, match="state-damaged"):
        list(checkpoints.load_all([path], "cpu"))


def test_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while a checkpoint is written is raised; the earlier file stays, no part is left."""
    before = checkpoints.save(path_of(tmp_path, 1), make_checkpoint(1)).read_bytes()
    write = trial_dir.write_checkpoint_digest

    def fail(path: Path) -> None:
        if "trial1" in str(path):
            raise OSError(28, "No space left on device")
        write(path)

    monkeypatch.setattr(trial_dir, "write_checkpoint_digest", fail)
    items = [(path_of(tmp_path, n), make_checkpoint(n)) for n in range(3)]
    with pytest.raises(OSError, match="No space"):
        checkpoints.save_all(items)
    assert path_of(tmp_path, 1).read_bytes() == before
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all(trial_dir.checkpoint_damage(p) is None for p in files)


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (1 << 30, checkpoints.THREADS)])
def test_memory_limits_checkpoints_at_once(
    limit: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more checkpoints exist at once than fit in the limit."""
    monkeypatch.setattr(checkpoints, "BYTES_AT_ONCE", limit)
    written: list[Any] = []
    lock = threading.Lock()

    def save(path: Path, checkpoint: Checkpoint) -> Path:
        with lock:
            written.append(checkpoint)
        return path

    monkeypatch.setattr(checkpoints, "save", save)
    ahead = []

    def items() -> Iterator[tuple[Path, Checkpoint]]:
        for n in range(12):
            ahead.append(n - len(written))
            yield path_of(tmp_path, n), make_checkpoint(n)

    (tmp_path / "trials").mkdir()
    checkpoints.save_all(items())
    assert len(written) == 12
    assert max(ahead) <= most
