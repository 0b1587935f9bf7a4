"""The safetensors format, as far as a file can be checked without reading its tensors.

A file is eight bytes with the header's length (little-endian), the header in JSON, and the
tensors' bytes without gaps. So the header gives the size of the whole file: a truncated one is
found at once. ``safetensors.safe_open`` refuses such files too, but does not say how many bytes
are missing.
"""

from __future__ import annotations

import json
import re
from typing import Any, BinaryIO, NamedTuple

INDEX = "model.safetensors.index.json"
"""The file of a sharded model that maps each tensor to its shard."""
SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
"""A plain file name: no folder, no parent."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""


class Header(NamedTuple):
    """A file's header: where its tensors begin and end, in bytes from the start of the file."""

    begin: int
    end: int
    tensors: int
    """Number of tensors."""
    metadata: dict[str, Any]


def read_header(file: BinaryIO, size: int) -> Header | None:
    """Read the header of an open file of ``size`` bytes; leave it at the first tensor.

    Returns None where the file ends before its header does.

    Raises:
        ValueError: it is no safetensors header.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        return None
    try:
        entries = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for n, entry in entries.items() if n != "__metadata__"]
        metadata = entries.get("__metadata__", {})
        return Header(8 + length, 8 + length + max(ends, default=0), len(ends), metadata)
    except (RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("not a safetensors header") from error
