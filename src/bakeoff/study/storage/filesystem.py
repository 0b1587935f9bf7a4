"""Which file system a folder lies on, and why a study does not live on a network's.

Asked by ``folder.make`` before anything is written. SQLite's write-ahead log needs memory that all
its processes share, and locks that hold: network file systems and buckets promise neither, and
databases on them are lost. Reads the kernel's table of mounts; where there is none (not Linux), it
knows nothing and refuses nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from bakeoff.core.errors import EnvironmentProblem

MOUNT_TABLE = Path("/proc/self/mounts")
NETWORK_FOLDER_VARIABLE = "BAKEOFF_NETWORK_FOLDER"
"""Set to 1 by whoever has no other disk and runs the study from one host only: the database then
does without the write-ahead log."""

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
"""FUSE file systems over a disk of this machine; of any other FUSE that cannot be known."""


class Mount(NamedTuple):
    """One mounted file system."""

    source: str
    point: str
    kind: str


def filesystem_of(folder: Path, table: str | None = None) -> Mount | None:
    """Return the file system that ``folder`` lies, or would lie, on; None where it is not known.

    ``table`` is a text in the form of ``/proc/mounts``; by default the kernel's.
    """
    if table is None:
        try:
            table = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    path = folder.resolve()
    inside = [m for m in _parse_mounts(table) if path.is_relative_to(m.point)]
    # the longest path wins; of two on one point, the later one lies on top
    return max(reversed(inside), key=lambda m: len(m.point), default=None)


def is_network_filesystem(kind: str) -> bool:
    """Tell whether a file system of this kind is another machine's, or may be."""
    fuse = kind == "fuse" or kind.startswith("fuse.")
    return kind in NETWORK or (fuse and kind not in LOCAL_FUSE)


def allows_network_folder() -> bool:
    """Tell whether the user has asked for a study on a network file system."""
    return os.environ.get(NETWORK_FOLDER_VARIABLE, "") == "1"


def check_local_filesystem(folder: Path, table: str | None = None) -> None:
    """Refuse a study folder on a network file system.

    Raises:
        EnvironmentProblem: ``network-folder``, with the mount.
    """
    mount = filesystem_of(folder, table)
    if mount is None or not is_network_filesystem(mount.kind) or allows_network_folder():
        return
    raise EnvironmentProblem(
        "network-folder",
        f"The study folder {folder} lies on a network file system ({mount.kind}, {mount.source} "
        f"on {mount.point}): a database's locks and shared memory do not hold there, and studies "
        "are lost.",
        "`--out DIR` on a disk of this machine, and copy the folder when the study has ended; or, "
        f"where there is no such disk and one host only runs the study, {NETWORK_FOLDER_VARIABLE}=1.",
    )


def _parse_mounts(table: str) -> list[Mount]:
    rows = [line.split() for line in table.splitlines()]
    return [Mount(_unescape(r[0]), _unescape(r[1]), r[2]) for r in rows if len(r) >= 3]


def _unescape(field: str) -> str:
    """Undo the table's escapes: three octal digits, for blanks and the like."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), field)
