"""Network file systems are told from local ones by the kernel's table, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.study.storage import filesystem, study_dir
from bakeoff.study.storage.database import Writer

ROOT = "overlay / overlay rw,relatime 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "lustre", "cifs", "smb3", "ceph", "fuse.ceph-fuse", "glusterfs",
     "fuse.glusterfs", "9p", "beegfs", "afs", "gpfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse",
     "fuse.rclone", "fuse"],
)  # fmt: skip
def test_network_file_system_refused(kind: str) -> None:
    """A network file system is refused.

    Fault 21: with the mount, the reason, and what to do.
    """
    table = f"{ROOT}server:/export /scratch {kind} rw 0 0\n"
    with pytest.raises(EnvironmentProblem) as error:
        filesystem.check_local_filesystem(Path("/scratch/me/not-there-yet"), table)
    assert (error.value.code, error.value.exit_code) == ("network-folder", 6)
    assert f"({kind}, server:/export on /scratch)" in error.value.cause
    assert "--out DIR" in error.value.try_
    filesystem.check_local_filesystem(
        Path("/scratchpad"), table
    )  # another folder: the name only begins so


@pytest.mark.parametrize(
    "kind",
    ["overlay", "tmpfs", "virtiofs", "ext4", "xfs", "btrfs", "zfs", "apfs", "fuseblk",
     "fuse.fuse-overlayfs", "fuse-overlayfs", "fuse.ntfs-3g", "fuse.gocryptfs"],
)  # fmt: skip
def test_local_and_container_filesystems_accepted(kind: str) -> None:
    """Local and container file systems are accepted."""
    filesystem.check_local_filesystem(Path("/scratch/me"), f"{ROOT}disk /scratch {kind} rw 0 0\n")


def test_innermost_last_mount_wins() -> None:
    """The innermost mount point applies, and the last mount on it."""
    table = (
        f"{ROOT}s:/a /data nfs4 rw 0 0\ndisk /data/fast ext4 rw 0 0\n"
        "s:/b /my\\040disk nfs rw 0 0\ndisk /my\\040disk ext4 rw 0 0\n"
    )
    for path, kind in {
        "/data/fast/x": "ext4", "/data/slow": "nfs4", "/my disk/x": "ext4", "/home": "overlay",
    }.items():  # fmt: skip
        found = filesystem.filesystem_of(Path(path), table)
        assert found is not None
        assert found.kind == kind


def test_unknown_filesystem_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown file system is accepted."""
    monkeypatch.setattr(filesystem, "MOUNT_TABLE", tmp_path / "none")
    assert filesystem.filesystem_of(tmp_path) is None
    filesystem.check_local_filesystem(tmp_path)


def test_study_folder_filesystem_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study folder is checked against the mount table.

    Fault 21: nothing is written; with consent, the database does without shared memory.
    """
    table = tmp_path / "mounts"
    table.write_text(f"{ROOT}server:/export {tmp_path}/net nfs rw 0 0\n")
    monkeypatch.setattr(filesystem, "MOUNT_TABLE", table)
    out = tmp_path / "net" / "study"
    with pytest.raises(EnvironmentProblem, match="network-folder"):
        study_dir.create(out)
    assert not out.exists()
    monkeypatch.setenv(filesystem.NETWORK_FOLDER_VARIABLE, "1")
    study_dir.create(out)
    for place, journal in ((out, "delete"), (tmp_path, "wal")):
        with Writer(place / "study.db") as writer, writer._engine.connect() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == journal
