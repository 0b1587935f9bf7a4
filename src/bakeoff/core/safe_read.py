"""Files that strangers wrote, read with bounds: so many bytes, so many levels, text or JSON alone.

Stands at the bottom: whoever reads a study file, a config, a template or a result file reads it
through here, and says in its own words what a file that is ``Unreadable`` means. Standard library
only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

STUDY_BYTES = 2**20
"""A study file, a method file, a chat template, the user's metric: written by hand."""
CONFIG_BYTES = 4 * 2**20
"""``config.json`` and kin: labels and token tables make some of them long."""
RESULT_BYTES = 64 * 2**20
"""A result file of ``method_comparison``, its generated samples included."""
GENERAL_BYTES = 256 * 2**20
"""A file of general text, of which a few thousand tokens are read."""
DATA_BYTES = 8 * 2**30
"""A file of rows, and what a compressed one unpacks to: all of it is held in memory."""
ROW_CHARACTERS = 16 * 2**20
"""A row of data: some books' worth of text."""
DEPTH = 64
"""Levels of nesting in JSON; beyond some hundreds Python's own recursion ends in a crash."""


class UnreadableFile(Exception):
    """A file is missing, too large, no UTF-8, no JSON or nested too deep; the message says which.

    ``missing`` tells the first of these from the others.
    """

    def __init__(self, why: str, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file of at most ``most`` bytes.

    Raises:
        Unreadable: it is not there, is no plain file, or is larger.
    """
    try:
        if not path.is_file():  # a pipe or a device would never end
            missing = not path.exists()
            raise UnreadableFile(
                "there is no such file" if missing else "it is no plain file", missing
            )
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise UnreadableFile(getattr(error, "strerror", None) or str(error)) from error
    if len(raw) > most:
        raise UnreadableFile(f"it is larger than {_format_size(most)}")
    return raw


def read_text(path: Path, most: int) -> str:
    """Read a UTF-8 text file of at most ``most`` bytes.

    Raises:
        Unreadable: as ``read_bytes``, and not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"it is not UTF-8 (byte {error.start + 1})") from error


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of at most ``most`` bytes and ``DEPTH`` levels.

    Raises:
        Unreadable: as ``read_text``, and not JSON, or nested deeper.
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
    """Tell whether lists and tables are nested deeper than ``levels``; without recursion."""
    layer: list[Any] = [value]
    for _ in range(levels + 1):
        layer = [inner for outer in layer for inner in _children(outer)]
        if not layer:
            return False
    return True


def find_unsupported_value(value: Any, finite: bool = True) -> str | None:
    """Say what of a value TOML can say and JSON cannot keep, by its dotted key; None for nothing.

    That is dates, numbers beyond 64 bits or (``finite``) not finite, text with NUL or half a
    character in it, and what is nested deeper than ``DEPTH``.
    """
    if exceeds_depth(value, DEPTH):
        return f"it is nested deeper than {DEPTH} levels"
    return next(_unsupported_values(value, "", finite), None)


def count_characters(value: Any) -> int:
    """Return how many characters the strings in a value hold, its keys included."""
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
            yield f"{where}: text holds a NUL or half a character"
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            yield f"{where} is {value}, which is no finite number"
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            yield f"{where} is a number beyond 64 bits"
    elif value is not None:
        yield f"{where} is a {type(value).__name__}: write it as text, in quotes"


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _format_size(most: int) -> str:
    exponent = int(math.log2(most)) // 10 if most >= 1024 else 0
    return f"{most / 1024**exponent:.0f} {('bytes', 'KiB', 'MiB', 'GiB')[exponent]}"
