"""How each method of a study can be served, from its measured capabilities.

Standard library only. Methods without a record are absent, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bakeoff.core.trial import MethodEntry
from bakeoff.methods import capability_records, registry


def serving_forms(entries: Iterable[MethodEntry], cache: Path) -> dict[str, str | None]:
    """Return ``adapter``, ``converted``, ``merged`` or None by method (see ``Capabilities.vllm``).

    ``cache`` is the user's cache folder. Methods that were never probed are absent.
    """
    record = capability_records.load_shipped()
    forms = {}
    for entry in entries:
        probed = capability_records.find_record(entry, cache, record).capabilities
        for variant in () if probed else _with_catalog_tuning(entry):
            probed = probed or capability_records.find_record(variant, cache, record).capabilities
        if probed is not None:
            forms[entry.name] = probed.vllm
    return forms


def _with_catalog_tuning(entry: MethodEntry) -> Iterator[MethodEntry]:
    """Yield the entry with the tuning arguments of each catalog method that it may be.

    Rank or size, dropout and target modules do not change the format of its files. Any other
    argument may, so a method that still differs from the catalog has no record.
    """
    known = registry.names()
    for name in (entry.name,) if entry.name in known else known:
        original = registry.load(name, Path())
        if (original.peft, original.hook) == (entry.peft, entry.hook):
            yield _with_tuning_of(entry, original)


def _with_tuning_of(entry: MethodEntry, original: MethodEntry) -> MethodEntry:
    tuning = {*original.tuning, "target_modules", *_size_argument(original.size)}
    config = {k: v for k, v in entry.config.items() if k not in tuning}
    config |= {k: v for k, v in original.config.items() if k in tuning}
    return dataclasses.replace(entry, config=config)


def _size_argument(size: dict[str, Any] | None) -> tuple[str, ...]:
    return () if size is None else (str(size["argument"]),)
