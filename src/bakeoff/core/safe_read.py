"""Read untrusted files with limits on their size and nesting.

Callers turn ``UnreadableFile`` into an error of their own. Standard library only.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

INDEX = "model.safetensors.index.json"
"""The file of a sharded model that maps each tensor to its shard."""
SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
"""A plain file name: no folder, no parent."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

STUDY_BYTES = 2**20
"""Limit for files that are written by hand: study file, method file, chat template, metric."""
CONFIG_BYTES = 4 * 2**20
"""Limit for ``config.json`` and similar files; label and token tables make some of them long."""
RESULT_BYTES = 64 * 2**20
"""Limit for a result file of ``method_comparison``, including its generated samples."""
GENERAL_BYTES = 256 * 2**20
"""Limit for a file of general text, of which a few thousand tokens are read."""
DATA_BYTES = 8 * 2**30
"""Limit for a file of rows, also after decompression: all of it is held in memory."""
ROW_CHARACTERS = 16 * 2**20
"""Limit for a row of data: the text of several books."""
DEPTH = 64
"""Limit for the nesting of JSON; beyond some hundreds of levels Python's recursion fails."""


class UnreadableFile(Exception):
    """A file is missing, too large, not UTF-8, not JSON or nested too deep; the message says which.

    ``missing`` is true only for a file that does not exist.
    """

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file of at most ``most`` bytes.

    Raises:
        UnreadableFile: it does not exist, is no regular file, or is larger.
    """
    try:
        if not path.is_file():  # a pipe or a device would never end
            missing = not path.exists()
            raise UnreadableFile(
                "there is no such file" if missing else "it is not a regular file", missing
            )
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise UnreadableFile(getattr(error, "strerror", None) or str(error)) from error
    if len(raw) > most:
        raise UnreadableFile(f"it is larger than {_format_size(most)}")
    return raw


def read_text(path: Path, most: int) -> str:
    """Read a UTF-8 text file of at most ``most`` bytes, without a byte order mark.

    Raises:
        UnreadableFile: as ``read_bytes``, and not UTF-8.
    """
    raw = read_bytes(path, most)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UnreadableFile("it is UTF-16, not UTF-8") from error
        line = raw.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(
            f"it is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}"
        ) from error


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of at most ``most`` bytes and ``DEPTH`` levels.

    Raises:
        UnreadableFile: as ``read_text``, and not JSON, or nested deeper.
    """
    text = read_text(path, most)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise UnreadableFile(f"it is nested deeper than {DEPTH} levels") from error
    except ValueError as error:  # JSONDecodeError, and an integer of thousands of digits
        raise UnreadableFile(f"it is not JSON: {error}") from error
    if exceeds_depth(value, DEPTH):
        raise UnreadableFile(f"it is nested deeper than {DEPTH} levels")
    return value


def exceeds_depth(value: Any, levels: int) -> bool:
    """Tell whether lists and dicts are nested deeper than ``levels``, without recursion."""
    layer: list[Any] = [value]
    for _ in range(levels + 1):
        layer = [inner for outer in layer for inner in _children(outer)]
        if not layer:
            return False
    return True


def find_unsupported_value(value: Any, finite: bool = True) -> str | None:
    """Return which part of a TOML value JSON cannot store, with its dotted key; None if it can.

    Unsupported are dates, integers beyond 64 bits, floats that are not finite (if ``finite``),
    strings with a NUL or a lone surrogate, and nesting deeper than ``DEPTH``.
    """
    if exceeds_depth(value, DEPTH):
        return f"it is nested deeper than {DEPTH} levels"
    return next(_unsupported_values(value, "", finite), None)


def count_characters(value: Any) -> int:
    """Return the number of characters of all strings in a value, including keys."""
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            left += item
    return total


def _unsupported_values(value: Any, where: str, finite: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _unsupported_values(key, f"a key of {where or 'the file'}", finite)
            yield from _unsupported_values(inner, f"{where}.{key}" if where else str(key), finite)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unsupported_values(inner, f"{where}.{number}", finite)
    elif isinstance(value, str):
        if any(c == "\0" or 0xD800 <= ord(c) < 0xE000 for c in value):
            yield f"{where}: the text contains a NUL or a lone surrogate"
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            yield f"{where} is {value}, which is not finite"
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            yield f"{where} does not fit into 64 bits"
    elif value is not None:
        yield f"{where} is a {type(value).__name__}: write it as text, in quotes"


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _format_size(most: int) -> str:
    exponent = int(math.log2(most)) // 10 if most >= 1024 else 0
    return f"{most / 1024**exponent:.0f} {('bytes', 'KiB', 'MiB', 'GiB')[exponent]}"


class Header(NamedTuple):
    """A file's header: where its tensors begin and end, in bytes from the start of the file."""

    begin: int
    end: int
    tensors: int
    """Number of tensors."""
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = {}
    """The shape of each tensor."""


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
        metadata = entries.pop("__metadata__", {})
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        shapes = {name: tuple(entry.get("shape", ())) for name, entry in entries.items()}
        return Header(8 + length, 8 + length + max(ends, default=0), len(ends), metadata, shapes)
    except (RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("not a safetensors header") from error
