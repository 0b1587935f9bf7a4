"""Names and paths from untrusted input: their validation, quoting for a shell, home folders.

Patterns of hub ids and commits are here too.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows reserves for devices, with any suffix."""
COMMIT = re.compile(r"[0-9a-f]{40}")
"""The id of a commit on the Hugging Face hub."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NOT_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and the surrogates that Python puts for bytes that are not UTF-8."""


def invalid_name_reason(name: str) -> str | None:
    """Return why a study, method or folder cannot have this name; None if it can."""
    if not NAME.fullmatch(name):
        return "a name has 1 to 64 characters of A-Z a-z 0-9 . _ - and does not start with -"
    if not name.strip("."):
        return "it refers to a parent folder"
    if _RESERVED.fullmatch(name):
        return "Windows reserves it for a device"
    return None


def sanitize_name(text: str) -> str:
    """Return ``text`` changed into a valid name (see ``invalid_name_reason``)."""
    name = _UNSAFE.sub("-", text).lstrip("-")[:64]
    return name if invalid_name_reason(name) is None else f"study-{name.lstrip('.')}"[:64]


def invalid_path_reason(text: str) -> str | None:
    """Return why a study file cannot name this path; None if it can."""
    if not text.strip():
        return "it is empty"
    if (why := undisplayable_reason(text)) is not None:
        return why
    if len(text) > 1024 or any(len(part.encode()) > 255 for part in text.split("/")):
        return "it is too long for a path"
    if text.startswith("~") and not text.startswith("~/") and text != "~":
        return "only ~/ is expanded to a home folder"
    return None


def undisplayable_reason(text: str) -> str | None:
    """Return why a path cannot be shown and stored as text; None if it can."""
    return "it contains a control character" if _NOT_TEXT.search(text) else None


def expand_home(text: str) -> Path:
    """Return the path that ``text`` names: a leading ``~/`` is the home folder.

    ``./~/x`` is a folder called ``~``; ``Path`` would drop the ``./`` and then expand it.
    """
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def quote_path(path: Path | str) -> str:
    """Return a path as one word of a shell command; one that starts with a dash is no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def is_within(path: Path, folder: Path) -> bool:
    """Tell whether ``path`` lies in ``folder`` once all symbolic links are resolved."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a cycle of links
        return False


def is_hub_id(model: str) -> bool:
    """Tell whether a model name has the form of a hub id (``owner/name``)."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~"))
