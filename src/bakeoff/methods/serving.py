"""How each method of a study can be served, from what the probe of the catalog found.

Stands between ``known`` and the report: the recommendation for serving reads it. Standard library
only. A method whose probe is missing is absent, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bakeoff.core.trial import MethodEntry
from bakeoff.methods import capability_records, registry


def serving_forms(entries: Iterable[MethodEntry], cache: Path) -> dict[str, str | None]:
    """Return by name ``adapter``, ``converted``, ``merged`` or None (see ``Capabilities.vllm``).

    ``cache`` is the user's cache folder. A method that was never probed is left out.
    """
    record = capability_records.load_shipped()
    found = {}
    for entry in entries:
        probed = capability_records.find_record(entry, cache, record).capabilities
        if probed is None:
            probed = capability_records.find_record(
                _with_catalog_tuning(entry), cache, record
            ).capabilities
        if probed is not None:
            found[entry.name] = probed.vllm
    return found


def _with_catalog_tuning(entry: MethodEntry) -> MethodEntry:
    """Return the entry with the catalog's values for what only tunes it.

    Its rank or size, dropout and which layers it adapts do not change what it is saved as; any
    other argument of the user's may, so a method that still differs stays unknown.
    """
    if entry.name not in registry.names():
        return entry
    own = registry.load(entry.name, Path())
    tuning = {*own.tuning, "target_modules", *_size_argument(own.size)}
    config = {k: v for k, v in entry.config.items() if k not in tuning}
    config |= {k: v for k, v in own.config.items() if k in tuning}
    return dataclasses.replace(entry, config=config)


def _size_argument(size: dict[str, Any] | None) -> tuple[str, ...]:
    return () if size is None else (str(size["argument"]),)
