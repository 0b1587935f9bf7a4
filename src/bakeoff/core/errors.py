"""The errors that users see.

BakeoffError                 has a stable ``code``, a cause, one ``Try:`` line, an exit code
├── UsageError               the study file, an option or a name is wrong            (exit 2)
├── PreflightError           data, base or folder is unusable; found before training  (exit 3)
├── LockedError              another process is running this study                   (exit 5)
├── EnvironmentProblem       disk, network, a missing package                        (exit 6)
└── Interrupted, Terminated  Ctrl-C, SIGTERM: stopped at a safe point          (exit 130, 143)
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class BakeoffError(Exception):
    """An error that the user can act on: a stable code, a cause and a hint."""

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, cause: str, try_: str) -> None:
        super().__init__(code, cause, try_)  # positional: keeps the exception picklable
        self.code = code
        self.cause = cause
        self.try_ = try_

    def __str__(self) -> str:
        return f"[{self.code}] {self.cause}\nTry: {self.try_}"

    def to_json(self) -> dict[str, str | int]:
        """Return plain JSON values; a worker returns them under ``error``."""
        text = {"code": self.code, "cause": self.cause, "try": self.try_}
        return {**text, "exit": self.exit_code}


class UsageError(BakeoffError):
    """The study file, an option or a name is wrong."""

    exit_code = 2


class PreflightError(BakeoffError):
    """The data, the base or the study folder is unusable; nothing was trained."""

    exit_code = 3


class LockedError(BakeoffError):
    """Another process is running this study."""

    exit_code = 5


class EnvironmentProblem(BakeoffError):
    """The machine lacks something: disk, permission, network or a package."""

    exit_code = 6


class Interrupted(BakeoffError):
    """The user stopped the study; the same command resumes it."""

    exit_code = 130


class Terminated(Interrupted):
    """The system stopped the study (SIGTERM)."""

    exit_code = 143


def near_match(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``name``, or None if none is similar."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    swapped = [k for k in lowered if sorted(k) == sorted(name.lower())]
    if swapped:  # transposed letters: a better match than difflib's, which weighs positions
        return lowered[swapped[0]]
    hits = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[hits[0]] if hits else None


def unknown_name(code: str, what: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for an unknown name; the hint has the closest match and all known names."""
    known = sorted(known)
    near = near_match(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    return UsageError(code, f"No {what} named '{name}'.", f"{hint}Known: {', '.join(known)}.")


def describe_error(error: BaseException) -> str:
    """Return an error's type and message; without a message, the place where it was raised."""
    name, text = type(error).__name__, str(error).strip()
    if text:
        return f"{name}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return name
    last = frames[-1]
    return f"{name} without a message, in {last.name} ({Path(last.filename).name}:{last.lineno})"


FAULT = "a fault of bakeoff's"
"""How the reason begins why an accelerator is off, where an unexpected error turned it off."""


def first_line(error: BaseException, limit: int = 200, with_type: bool = True) -> str:
    """Return the first line of an error's message, at most ``limit`` characters long.

    The name of its class comes before it, or alone if ``with_type`` is off and there is no message.
    """
    text = " ".join(str(error).strip().partition("\n")[0].split())
    if with_type:
        line = f"{type(error).__name__}: {text}" if text else describe_error(error)
    else:
        line = text or type(error).__name__
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
