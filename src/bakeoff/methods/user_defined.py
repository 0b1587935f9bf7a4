"""A method as the user already has it: a PEFT config class with arguments, or PEFT's own file.

``kind = "peft"`` in a study file, read by ``study``. Standard library only: which class a PEFT type
belongs to is what the catalog's own entries say.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from bakeoff.core.errors import UsageError, unknown_name
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, find_unsupported_value, read_json
from bakeoff.core.trial import MethodEntry
from bakeoff.methods import capability_records, registry

BOOKKEEPING_KEYS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "runtime_config", "task_type",
}  # fmt: skip
"""What PEFT writes into ``adapter_config.json`` beside a method's arguments: never looked at, so
that no file says which base, which revision or which module is loaded."""


def from_class(name: str, peft: str, config: dict[str, Any]) -> MethodEntry:
    """Return the method of a PEFT config class.

    Raises:
        UsageError: ``unknown-peft-config`` with the near match.
    """
    classes = {e.peft: e for e in _default_entries().values()}
    if peft not in classes:
        raise unknown_name(
            "unknown-peft-config", "PEFT config class", peft, sorted(map(str, classes))
        )
    return _build_entry(name, classes[peft], config, f"PEFT's {peft}")


def from_file(name: str, path: Path) -> MethodEntry:
    """Return the method that an ``adapter_config.json`` describes, its bookkeeping left out.

    Raises:
        UsageError: ``adapter-config-invalid``, ``unknown-peft-type`` with the near match.
    """
    try:
        written = read_json(path, CONFIG_BYTES)
    except UnreadableFile as error:
        raise _invalid_file(name, path, f"cannot be read: {error}") from error
    if (why := find_unsupported_value(written)) is not None:
        raise _invalid_file(name, path, f"cannot be taken: {why}")
    if not isinstance(written, dict) or "peft_type" not in written:
        raise _invalid_file(name, path, "has no `peft_type`")
    types = _default_entries()
    kind = str(written["peft_type"])
    if kind not in types:
        raise unknown_name("unknown-peft-type", "PEFT type", kind, sorted(types))
    return _build_entry(name, types[kind], method_arguments(written), str(path))


def method_arguments(written: dict[str, Any]) -> dict[str, Any]:
    """Return a method's arguments from what PEFT writes: without bookkeeping and unset ones."""
    return {
        k: v
        for k, v in written.items()
        if k not in BOOKKEEPING_KEYS and v is not None and not k.startswith("_")
    }


def peft_type_of(config_class: str) -> str | None:
    """Return the PEFT type of a config class; None for a class that the catalog does not know."""
    types = {entry.peft: kind for kind, entry in _default_entries().items()}
    return types.get(config_class)


def config_class_of(kind: str) -> str:
    """Return the config class of a PEFT type.

    Raises:
        UsageError: ``unknown-peft-type`` with the near match.
    """
    types = _default_entries()
    if kind not in types:
        raise unknown_name("unknown-peft-type", "PEFT type", kind, sorted(types))
    return str(types[kind].peft)


def find_catalog_method(written: dict[str, Any]) -> MethodEntry | None:
    """Return the catalog's method that a written config describes; None for an unknown type."""
    original = _default_entries().get(str(written.get("peft_type")))
    return None if original is None else _closest_variant(original, method_arguments(written))


def _build_entry(
    name: str, original: MethodEntry, config: dict[str, Any], source: str
) -> MethodEntry:
    like = _closest_variant(original, config)
    return MethodEntry(
        name=name,
        title=name,
        family=like.family,
        mechanism=f"{like.title} as {source} has it",
        paper=like.paper,
        peft=like.peft,
        hook=like.hook,
        config=config,
        learning_rate=like.learning_rate,
        learning_rate_why=f"{like.title}'s in the catalog: {like.learning_rate_why}",
    )


def _default_entries() -> dict[str, MethodEntry]:
    """Return the catalog's entry of each PEFT type: the one that bears the type's name."""
    record = capability_records.load_shipped()["methods"]
    return {
        name.upper(): entry
        for name, entry in _load_catalog().items()
        if record.get(name, {}).get("peft_type") == name.upper()
    }


@functools.cache
def _load_catalog() -> dict[str, MethodEntry]:
    return {name: registry.load(name, Path()) for name in registry.names()}


def _closest_variant(original: MethodEntry, config: dict[str, Any]) -> MethodEntry:
    """Return the variant in the catalog that ``config`` describes: its code and prior are wanted.

    A variant is told by the switches in which it differs from its type's own entry; sizes are free.
    """
    best, most = original, 0
    for entry in _load_catalog().values():
        own = {
            k: v
            for k, v in entry.config.items()
            if original.config.get(k) != v and _is_switch(k, v)
        }
        same = all(k in config and (config[k] == v or isinstance(v, dict)) for k, v in own.items())
        if entry.peft == original.peft and entry.needs is None and same and len(own) > most:
            best, most = entry, len(own)
    return best


def _is_switch(key: str, value: Any) -> bool:
    free = key == "target_modules" or (isinstance(value, str) and " " in value)
    return isinstance(value, (bool, str, dict)) and not free


def _invalid_file(name: str, path: Path, why: str) -> UsageError:
    return UsageError(
        "adapter-config-invalid",
        f"[method.{name}] path: {path} {why}.",
        "the adapter_config.json that PEFT's save_pretrained writes.",
    )
