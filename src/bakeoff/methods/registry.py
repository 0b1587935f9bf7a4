"""Read the catalog: a TOML file in ``catalog/`` (or of the user's own) is a method.

Gives the plan and the CLI their ``MethodEntry`` values. Standard library only: listing methods
imports neither torch nor PEFT.
"""

from __future__ import annotations

import functools
import tomllib
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from bakeoff.core.errors import UsageError, near_match, unknown_name
from bakeoff.core.names import invalid_name_reason
from bakeoff.core.safe_read import STUDY_BYTES, UnreadableFile, find_unsupported_value, read_text
from bakeoff.core.trial import MethodEntry

FAMILIES = (
    "low-rank", "orthogonal", "vector scaling", "sparse", "bias and norm", "prompt", "mixture",
    "embedding rows", "full", "head", "other",
)  # fmt: skip
ENTRY_POINTS = "bakeoff.methods"
"""Installed packages name a package of theirs under it: the TOML files in it are methods."""
_KEYS = {
    "title", "family", "mechanism", "paper", "peft", "hook", "needs", "learning_rate", "config",
    "tuning", "rates", "size",
}  # fmt: skip
_RATE_KEYS = {"prior", "why"}
_TUNING_KEYS = {"values", "why"}
_SIZE_KEYS = {"argument", "step", "values"}


def names() -> tuple[str, ...]:
    """Return the names of all methods of the catalog and of installed packages."""
    return tuple(sorted(_files()))


def read_source(name: str, folder: Path) -> str:
    """Return the TOML text of a method: the catalog's, an installed package's, or the user's own.

    ``name`` is a method's, or the path of a TOML file under ``folder``; a file ``<name>.toml`` in
    ``folder`` is found by its method's name too.

    Raises:
        UsageError: ``unknown-method`` with the near match, ``method-not-found``.
    """
    own = folder / (name if name.endswith(".toml") else f"{name}.toml")
    if not name.endswith(".toml") and name in (known := _files()):
        return known[name].read_text(encoding="utf-8")
    try:
        return read_text(own, STUDY_BYTES)
    except UnreadableFile as error:
        if not name.endswith(".toml") and (error.missing or "/" in name):
            raise unknown_name("unknown-method", "method", name, names()) from error
        if error.missing:
            raise UsageError(
                "method-not-found", f"There is no method file {own}.", "paths start at the study."
            ) from error
        raise _invalid_method(name, f"cannot be read: {error}") from error


def load(name: str, folder: Path) -> MethodEntry:
    """Return the method called ``name`` (see ``source``).

    Raises:
        UsageError: as ``source``, and ``method-invalid`` with the key.
    """
    return parse(Path(name).name.removesuffix(".toml"), read_source(name, folder))


@functools.cache
def _files() -> dict[str, Traversable]:
    """Return every known method's file by name; the catalog's own names cannot be taken."""
    folders = [files("bakeoff.methods.catalog")]
    folders += [files(point.value) for point in entry_points(group=ENTRY_POINTS)]
    found: dict[str, Traversable] = {}
    for folder in folders:
        for file in folder.iterdir():
            if file.name.endswith(".toml"):
                found.setdefault(file.name.removesuffix(".toml"), file)
    return found


def parse(name: str, text: str) -> MethodEntry:
    """Read one method's TOML text.

    Raises:
        UsageError: ``method-invalid``: not TOML, an unknown or missing key, neither peft nor hook.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number without end
        raise _invalid_method(name, f"is not TOML: {str(error)[:300]}") from error
    if (why := invalid_name_reason(name) or find_unsupported_value(raw)) is not None:
        raise _invalid_method(name, f"cannot be taken: {why}")
    _check_keys(name, raw, _KEYS)
    rate: Any = raw.get("learning_rate")
    if not isinstance(rate, dict):
        raise _invalid_method(name, "lacks the table [learning_rate] with `prior` and `why`")
    _check_keys(name, rate, _RATE_KEYS)
    if "peft" not in raw and "hook" not in raw:
        raise _invalid_method(name, "must give `peft` (a PEFT config class) or `hook`")
    _check_types(name, raw, rate)
    _check_tables(name, raw)
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
            needs=raw.get("needs"),
            rates={part: float(factor) for part, factor in raw.get("rates", {}).items()},
            tuning=raw.get("tuning", {}),
            size=raw.get("size"),
        )
    except KeyError as error:
        raise _invalid_method(name, f"lacks the key {error}") from error


def _check_types(name: str, raw: dict[str, Any], rate: dict[str, Any]) -> None:
    """Refuse values of another type than they are read as."""
    texts = ("title", "family", "mechanism", "paper", "peft", "hook", "needs")
    for table, keys, kind, said in (
        (raw, texts, str, "text"),
        (raw, ("config", "tuning", "rates", "size"), dict, "a table"),
        (rate, ("why",), str, "text"),
    ):
        for key in keys:
            if key in table and not isinstance(table[key], kind):
                raise _invalid_method(name, f"gives `{key}`, which is not {said}")
    factors = {f"rates.{part}": factor for part, factor in raw.get("rates", {}).items()}
    for key, value in {"learning_rate.prior": rate.get("prior", 1.0), **factors}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise _invalid_method(name, f"gives `{key}`, which is no number above 0")


def _check_tables(name: str, raw: dict[str, Any]) -> None:
    """Refuse a family, a tuning space or a size that says nothing usable."""
    family = raw.get("family")
    if family is not None and family not in FAMILIES:
        raise _invalid_method(
            name, f"has the family '{family}', which is none of {', '.join(FAMILIES)}"
        )
    for argument, space in raw.get("tuning", {}).items():
        if not isinstance(space, dict) or set(space) != _TUNING_KEYS:
            raise _invalid_method(name, f"needs `values` and `why` in [tuning.{argument}]")
    size = raw.get("size")
    if size is None:
        return
    _check_keys(name, size, _SIZE_KEYS)
    if not isinstance(size.get("argument"), str):
        raise _invalid_method(name, "gives `size.argument`, which is not text")
    if size["argument"] not in raw.get("config", {}):
        raise _invalid_method(
            name, f"sizes by '{size.get('argument')}', which [config] does not give"
        )


def _check_keys(name: str, table: dict[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            near = near_match(key, known)
            raise _invalid_method(
                name,
                f"has the unknown key '{key}'" + (f" (did you mean '{near}'?)" if near else ""),
            )


def _invalid_method(name: str, why: str) -> UsageError:
    return UsageError(
        "method-invalid", f"The method file '{name}' {why}.", "`bakeoff methods lora --toml`."
    )
