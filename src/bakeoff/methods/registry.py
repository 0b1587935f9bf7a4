"""Read the catalog: a TOML file in ``catalog/`` (or of the user's own) is a method.

Gives the plan and the CLI their ``MethodEntry`` values. Standard library only: listing methods
imports neither torch nor PEFT.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from bakeoff.errors import UsageError, near_match, unknown
from bakeoff.trial import MethodEntry

_KEYS = {"title", "family", "mechanism", "paper", "peft", "hook", "learning_rate", "config"}
_RATE_KEYS = {"prior", "why"}


def names() -> tuple[str, ...]:
    """Return the names of all catalog methods."""
    folder = files("bakeoff.methods.catalog")
    return tuple(
        sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    )


def load(name: str, folder: Path) -> MethodEntry:
    """Return the method called ``name``, or the one in the TOML file ``name`` under ``folder``.

    Raises:
        UsageError: ``unknown-method`` with the near match, ``method-invalid`` with the key.
    """
    if name.endswith(".toml"):
        path = folder / name
        if not path.is_file():
            raise UsageError(
                "method-not-found", f"There is no method file {path}.", "paths start at the study."
            )
        return parse(path.stem, path.read_text(encoding="utf-8"))
    if name not in names():
        raise unknown("unknown-method", "method", name, names())
    text = files("bakeoff.methods.catalog").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return parse(name, text)


def parse(name: str, text: str) -> MethodEntry:
    """Read one method's TOML text.

    Raises:
        UsageError: ``method-invalid``: not TOML, an unknown or missing key, not one of peft/hook.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(name, f"is not TOML: {error}") from error
    _refuse_unknown(name, raw, _KEYS)
    rate: Any = raw.get("learning_rate")
    if not isinstance(rate, dict):
        raise _invalid(name, "lacks the table [learning_rate] with `prior` and `why`")
    _refuse_unknown(name, rate, _RATE_KEYS)
    if ("peft" in raw) == ("hook" in raw):
        raise _invalid(name, "must give either `peft` (a PEFT config class) or `hook`")
    try:
        return MethodEntry(
            name=name,
            title=raw["title"],
            family=raw["family"],
            mechanism=raw["mechanism"],
            paper=raw.get("paper"),
            peft=raw.get("peft"),
            hook=raw.get("hook"),
            config=raw.get("config", {}),
            learning_rate=float(rate["prior"]),
            learning_rate_why=rate["why"],
        )
    except KeyError as error:
        raise _invalid(name, f"lacks the key {error}") from error


def _refuse_unknown(name: str, table: dict[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            near = near_match(key, known)
            raise _invalid(
                name,
                f"has the unknown key '{key}'" + (f" (did you mean '{near}'?)" if near else ""),
            )


def _invalid(name: str, why: str) -> UsageError:
    return UsageError(
        "method-invalid", f"The method file '{name}' {why}.", "`bakeoff methods lora --toml`."
    )
