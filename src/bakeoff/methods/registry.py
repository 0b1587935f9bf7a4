"""Read methods from TOML files: of the catalog, of installed packages, or the user's own.

Standard library only: listing methods imports neither torch nor PEFT.
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
"""Entry point group of installed packages; its values are packages with TOML files."""
_KEYS = {
    "title", "family", "mechanism", "paper", "peft", "hook", "needs", "learning_rate", "config",
    "tuning", "rates", "size",
}  # fmt: skip
_RATE_KEYS = {"prior", "base_parameters", "why"}
_TUNING_KEYS = {"values", "why"}
_SIZE_KEYS = {"argument", "step", "values"}


def names() -> tuple[str, ...]:
    """Return the names of all methods of the catalog and of installed packages."""
    return tuple(sorted(_files()))


def read_source(name: str, folder: Path) -> str:
    """Return the TOML text of a method of the catalog, of an installed package, or of the user.

    ``name`` is a method's name, or the path of a TOML file relative to ``folder``. A method's name
    also finds ``<name>.toml`` in ``folder``.

    Raises:
        UsageError: ``unknown-method`` with the closest match, ``method-not-found``.
    """
    path = folder / (name if name.endswith(".toml") else f"{name}.toml")
    if not name.endswith(".toml") and name in (known := _files()):
        return known[name].read_text(encoding="utf-8")
    try:
        return read_text(path, STUDY_BYTES)
    except UnreadableFile as error:
        if not name.endswith(".toml") and (error.missing or "/" in name):
            raise unknown_name("unknown-method", "method", name, names()) from error
        if error.missing:
            raise UsageError(
                "method-not-found",
                f"There is no method file {path}.",
                "a path relative to the study file.",
            ) from error
        raise _invalid_method(name, f"cannot be read: {error}") from error


def load(name: str, folder: Path) -> MethodEntry:
    """Return the method called ``name`` (see ``read_source``).

    Raises:
        UsageError: as ``read_source``, and ``method-invalid`` with the key.
    """
    return parse(Path(name).name.removesuffix(".toml"), read_source(name, folder))


@functools.cache
def _files() -> dict[str, Traversable]:
    """Return all methods' files by name; other packages cannot replace those of the catalog."""
    folders = [files("bakeoff.methods.catalog")]
    folders += [files(point.value) for point in entry_points(group=ENTRY_POINTS)]
    by_name: dict[str, Traversable] = {}
    for folder in folders:
        for file in folder.iterdir():
            if file.name.endswith(".toml"):
                by_name.setdefault(file.name.removesuffix(".toml"), file)
    return by_name


def parse(name: str, text: str) -> MethodEntry:
    """Parse a method's TOML text.

    Raises:
        UsageError: ``method-invalid``: not TOML, an unknown or missing key, neither peft nor hook.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a huge integer
        raise _invalid_method(name, f"is not TOML: {str(error)[:300]}") from error
    if (why := invalid_name_reason(name) or find_unsupported_value(raw)) is not None:
        raise _invalid_method(name, f"is not supported: {why}")
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
            base_parameters=rate.get("base_parameters"),
        )
    except KeyError as error:
        raise _invalid_method(name, f"lacks the key {error}") from error


def _check_types(name: str, raw: dict[str, Any], rate: dict[str, Any]) -> None:
    """Refuse values of a wrong type."""
    texts = ("title", "family", "mechanism", "paper", "peft", "hook", "needs")
    for table, keys, kind, kind_name in (
        (raw, texts, str, "text"),
        (raw, ("config", "tuning", "rates", "size"), dict, "a table"),
        (rate, ("why",), str, "text"),
    ):
        for key in keys:
            if key in table and not isinstance(table[key], kind):
                raise _invalid_method(name, f"gives `{key}`, which is not {kind_name}")
    factors = {f"rates.{part}": factor for part, factor in raw.get("rates", {}).items()}
    numbers = {f"learning_rate.{key}": rate.get(key, 1.0) for key in ("prior", "base_parameters")}
    for key, value in {**numbers, **factors}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise _invalid_method(name, f"gives `{key}`, which is not a positive number")


def _check_tables(name: str, raw: dict[str, Any]) -> None:
    """Refuse an invalid family, tuning space or size."""
    family = raw.get("family")
    if family is not None and family not in FAMILIES:
        raise _invalid_method(
            name, f"has the family '{family}', which is not one of {', '.join(FAMILIES)}"
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
        raise _invalid_method(name, f"sizes by '{size.get('argument')}', which is not in [config]")


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
