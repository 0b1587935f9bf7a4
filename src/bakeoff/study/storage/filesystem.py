"""The file system of a study directory; studies are not kept on network file systems.

SQLite's write-ahead log needs shared memory and working locks. Network file systems and buckets
guarantee neither, and databases on them get lost. The kernel's mount table is the source; without
one (not Linux) nothing is known and nothing refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from bakeoff.core.errors import EnvironmentProblem

MOUNT_TABLE = Path("/proc/self/mounts")
NETWORK_FOLDER_VARIABLE = "BAKEOFF_NETWORK_FOLDER"
"""Environment variable: 1 allows a study on a network file system, run from one host only. The
database then works without the write-ahead log."""

NETWORK = frozenset(
    {
        "nfs", "nfs3", "nfs4", "lustre", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs",
        "ceph", "glusterfs", "9p", "beegfs", "afs", "auristorfs", "gpfs", "orangefs", "pvfs2",
        "panfs", "wekafs", "davfs", "coda", "gfs2", "ocfs2",
    }
)  # fmt: skip
LOCAL_FUSE = frozenset(
    {
        "fuse-overlayfs", "fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.ntfs", "fuse.exfat",
        "fuse.exfat-fuse", "fuse.ext2", "fuse.fuse2fs", "fuse.bindfs", "fuse.mergerfs",
        "fuse.unionfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.securefs",
        "fuse.zfs", "fuse.lxcfs", "fuse.squashfuse",
    }
)  # fmt: skip
"""FUSE file systems on a disk of this machine; any other FUSE may be a network file system."""


class Mount(NamedTuple):
    """One mounted file system."""

    source: str
    point: str
    kind: str


def filesystem_of(folder: Path, table: str | None = None) -> Mount | None:
    """Return the file system of ``folder``, which need not exist; None if unknown.

    ``table`` is a text in the form of ``/proc/mounts``; by default the kernel's.
    """
    if table is None:
        try:
            table = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    path = folder.resolve()
    inside = [m for m in _parse_mounts(table) if path.is_relative_to(m.point)]
    # the longest mount point wins; of two mounts on one point, the later one is on top
    return max(reversed(inside), key=lambda m: len(m.point), default=None)


def is_network_filesystem(kind: str) -> bool:
    """Return whether a file system of this kind is, or may be, on another machine."""
    fuse = kind == "fuse" or kind.startswith("fuse.")
    return kind in NETWORK or (fuse and kind not in LOCAL_FUSE)


def allows_network_folder() -> bool:
    """Return whether the user allows a study on a network file system."""
    return os.environ.get(NETWORK_FOLDER_VARIABLE, "") == "1"


def check_local_filesystem(folder: Path, table: str | None = None) -> None:
    """Check that a study directory is not on a network file system, unless that is allowed.

    Raises:
        EnvironmentProblem: ``network-folder``, with the mount.
    """
    mount = filesystem_of(folder, table)
    if mount is None or not is_network_filesystem(mount.kind) or allows_network_folder():
        return
    raise EnvironmentProblem(
        "network-folder",
        f"The study folder {folder} is on a network file system ({mount.kind}, {mount.source} on "
        f"{mount.point}). A database's locks and shared memory do not work there, so studies get "
        "lost.",
        "`--out DIR` on a disk of this machine, and copy the folder when the study has ended. "
        "Without such a disk, and if only one host runs the study: "
        f"{NETWORK_FOLDER_VARIABLE}=1.",
    )


def _parse_mounts(table: str) -> list[Mount]:
    rows = [line.split() for line in table.splitlines()]
    return [Mount(_unescape(r[0]), _unescape(r[1]), r[2]) for r in rows if len(r) >= 3]


def _unescape(field: str) -> str:
    """Decode the escapes of the mount table: three octal digits, for blanks and the like."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), field)
