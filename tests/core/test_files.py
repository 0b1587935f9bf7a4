"""A power loss at any moment: what is on the disk by then is whole, or is not taken for whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bakeoff.core import files, trial_dir
from bakeoff.core.results import Status, TrialResult


class Disk:
    """Keeps of each file what was synced, and an image of the folder at each moment.

    The worst that a file system may do: a name is on the disk as soon as it is given, what the file
    holds only once that was asked for; before, it is empty.
    """

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.images = folder, images
        self.synced: dict[int, bytes] = {}
        self.count = 0
        self.named_since: set[Path] = set()

    def fsync(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        if path.is_dir():
            self.named_since.discard(path)
        else:
            self.synced[path.stat().st_ino] = path.read_bytes()
        self.photograph()

    def photograph(self) -> None:
        image = self.images / str(self.count)
        self.count += 1
        for path in self.folder.rglob("*"):
            copy = image / path.relative_to(self.folder)
            if path.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(self.synced.get(path.stat().st_ino, b""))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("which file a handle is cannot be asked here")
    (tmp_path / "study").mkdir()
    watched = Disk(tmp_path / "study", tmp_path / "images")
    monkeypatch.setattr(os, "fsync", watched.fsync)
    replace = Path.replace

    def renamed(path: Path, target: Path) -> Path:
        done = replace(path, target)
        watched.named_since.add(target.parent)
        watched.photograph()
        return done

    monkeypatch.setattr(Path, "replace", renamed)
    return watched


def after_each(disk: Disk, check: Callable[[Path], None]) -> None:
    assert disk.count >= 3
    for number in range(disk.count):
        check(disk.images / str(number))
    assert disk.named_since == set(), "a name that was given last may be lost"


def test_atomic_write_old_or_new(disk: Disk) -> None:
    """After a crash, a file has its old or its new content.

    Fault 9.
    """
    path = disk.folder / "report.json"
    files.atomic_write_text(path, "old")
    disk.count = 0
    shutil.rmtree(disk.images)
    files.atomic_write_text(path, "new and longer")

    def check(image: Path) -> None:
        assert (image / "report.json").read_text() in ("old", "new and longer")

    after_each(disk, check)


def test_finished_folder_is_complete(disk: Disk) -> None:
    """A folder that counts as finished is complete.

    Fault 9: the seal comes last, also after files that PEFT and safetensors wrote.
    """
    place = disk.folder / "trials" / "0123456789ab"
    (place / "adapter").mkdir(parents=True)
    (place / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (place / "adapter" / "adapter_config.json").write_text("{}")
    trial_dir.write_manifest(place, TrialResult(place.name, Status.DONE))
    finished = []

    def check(image: Path) -> None:
        there = image / "trials" / place.name
        if (there / trial_dir.MANIFEST).exists():
            finished.append(there)
            assert trial_dir.find_damage(there) is None

    after_each(disk, check)
    assert finished, "no image was taken after the seal"


def test_atomic_path_keeps_complete_file(tmp_path: Path) -> None:
    """A path is replaced by a complete file only."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail_halfway()
    assert path.read_bytes() == b"old"
    with files.atomic_path(path) as temporary:
        assert temporary.suffix == files.PARTIAL_SUFFIX
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
