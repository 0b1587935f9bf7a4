"""Methods that the user defines: a PEFT config class with arguments, or an ``adapter_config.json``.

``kind = "peft"`` in a study file. Standard library only: the catalog's entries map PEFT types to
config classes.
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
"""Keys of ``adapter_config.json`` that are no arguments of the method. They are ignored, so that a
file cannot choose the base, its revision or a module to import."""


def from_class(name: str, peft: str, config: dict[str, Any]) -> MethodEntry:
    """Return a method from a PEFT config class and its arguments.

    Raises:
        UsageError: ``unknown-peft-config`` with the closest match.
    """
    classes = {e.peft: e for e in _default_entries().values()}
    if peft not in classes:
        raise unknown_name(
            "unknown-peft-config", "PEFT config class", peft, sorted(map(str, classes))
        )
    return _build_entry(name, classes[peft], config, f"PEFT's {peft}")


def from_file(name: str, path: Path) -> MethodEntry:
    """Return a method from an ``adapter_config.json``, without its bookkeeping keys.

    Raises:
        UsageError: ``adapter-config-invalid``, ``unknown-peft-type`` with the closest match.
    """
    try:
        written = read_json(path, CONFIG_BYTES)
    except UnreadableFile as error:
        raise _invalid_file(name, path, f"cannot be read: {error}") from error
    if (why := find_unsupported_value(written)) is not None:
        raise _invalid_file(name, path, f"is not supported: {why}")
    if not isinstance(written, dict) or "peft_type" not in written:
        raise _invalid_file(name, path, "has no `peft_type`")
    types = _default_entries()
    kind = str(written["peft_type"])
    if kind not in types:
        raise unknown_name("unknown-peft-type", "PEFT type", kind, sorted(types))
    return _build_entry(name, types[kind], method_arguments(written), str(path))


def method_arguments(written: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments in a config written by PEFT: no bookkeeping keys, no unset values."""
    return {
        k: v
        for k, v in written.items()
        if k not in BOOKKEEPING_KEYS and v is not None and not k.startswith("_")
    }


def peft_type_of(config_class: str) -> str | None:
    """Return the PEFT type of a config class; None for a class that is not in the catalog."""
    types = {entry.peft: kind for kind, entry in _default_entries().items()}
    return types.get(config_class)


def config_class_of(kind: str) -> str:
    """Return the config class of a PEFT type.

    Raises:
        UsageError: ``unknown-peft-type`` with the closest match.
    """
    types = _default_entries()
    if kind not in types:
        raise unknown_name("unknown-peft-type", "PEFT type", kind, sorted(types))
    return str(types[kind].peft)


def find_catalog_method(written: dict[str, Any]) -> MethodEntry | None:
    """Return the catalog's method that a written config matches; None for an unknown type."""
    original = _default_entries().get(str(written.get("peft_type")))
    return None if original is None else _closest_variant(original, method_arguments(written))


def _build_entry(
    name: str, original: MethodEntry, config: dict[str, Any], source: str
) -> MethodEntry:
    variant = _closest_variant(original, config)
    return MethodEntry(
        name=name,
        title=name,
        family=variant.family,
        mechanism=f"{variant.title} with the arguments of {source}",
        paper=variant.paper,
        peft=variant.peft,
        hook=variant.hook,
        config=config,
        learning_rate=variant.learning_rate,
        learning_rate_why=f"{variant.title}'s in the catalog: {variant.learning_rate_why}",
        base_parameters=variant.base_parameters,
    )


def _default_entries() -> dict[str, MethodEntry]:
    """Return the default entry of each PEFT type: the one with the type's name."""
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
    """Return the catalog's variant that ``config`` matches, for its code and learning rate.

    A variant is recognised by the switches in which it differs from its type's default entry; sizes
    are ignored.
    """
    best, most_switches = original, 0
    for entry in _load_catalog().values():
        switches = {
            k: v
            for k, v in entry.config.items()
            if original.config.get(k) != v and _is_switch(k, v)
        }
        same = all(
            k in config and (config[k] == v or isinstance(v, dict)) for k, v in switches.items()
        )
        usable = entry.peft == original.peft and entry.needs is None
        if usable and same and len(switches) > most_switches:
            best, most_switches = entry, len(switches)
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
