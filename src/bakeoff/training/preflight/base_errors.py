"""Errors of a base that transformers cannot load, with a hint that fits the cause."""

from __future__ import annotations

from pathlib import Path

from bakeoff.core.errors import PreflightError


def load_error(path: str, error: Exception) -> PreflightError:
    """Return the error for a base that cannot be loaded."""
    hint = "load it with plain transformers first; `bakeoff doctor` shows versions."
    if not Path(path).is_dir():
        hint = (
            "check its id and `revision` under [base]; `hf auth login`, if it is private or gated; "
            f"without a network, `hf download {path}` beforehand."
        )
    cause = f"The base cannot be loaded: {type(error).__name__}: {error}"
    return PreflightError("base-not-loadable", cause, hint)
