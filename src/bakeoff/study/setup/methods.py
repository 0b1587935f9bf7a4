"""The methods of a study: from the catalog, from files, as variants; restored when it is resumed.

A study keeps the catalog's values that it was started with: a later version of the catalog may have
other defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.errors import UsageError, unknown_name
from bakeoff.core.trial import HEAD_FACTOR, MethodEntry
from bakeoff.methods import forbidden_arguments, registry, user_defined
from bakeoff.study.config import StudySpec
from bakeoff.study.config.budget import method_name
from bakeoff.study.config.inputs import JOINT

HEAD_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Factors on the output layer's learning rate that a joint search tries."""
MOST_SHOWN = 3
"""Arguments in the title of a variant; with more it is called by its name."""


def load_methods(spec: StudySpec, source: Path) -> tuple[MethodEntry, ...]:
    """Return the study's methods, control first; the user's arguments override the catalog's.

    Raises:
        UsageError: a method is unknown, invalid or unsafe, or ``like-replaces-method``.
    """
    entries = []
    for reference in spec.method_names:
        entry = _load_method(reference, spec, source)
        forbidden_arguments.check_arguments(entry.name, entry.config)
        forbidden_arguments.check_arguments(entry.name, entry.tuning)
        if spec.task.head_learning_rate == JOINT:
            entry = _add_head_factor(entry)
        entries.append(entry)
    return tuple(entries)


def _add_head_factor(entry: MethodEntry) -> MethodEntry:
    """Return the method with the output layer's rate, as a factor, in its tuning space."""
    if entry.hook == "head":  # trains nothing else: its learning rate is the output layer's
        return entry
    why = "the learning rate of the new output layer is searched jointly with the method's"
    space = {HEAD_FACTOR: {"values": list(HEAD_FACTORS), "why": why}}
    return dataclasses.replace(entry, tuning={**entry.tuning, **space})


def _load_method(reference: str, spec: StudySpec, source: Path) -> MethodEntry:
    name = method_name(reference)
    table = spec.method.get(name)
    if table is None:
        return _load_entry(reference, spec, source)
    if table.like is not None:
        if name in registry.names():
            raise UsageError(
                "like-replaces-method",
                f"[method.{name}] is like '{table.like}', but {name} is a method of the catalog.",
                f"another name, such as '{method_name(table.like)}-2'.",
            )
        entry = _variant(name, _load_method(table.like, spec, source), table.config)
    elif table.path is not None:
        entry = user_defined.from_file(name, source / table.path)
    elif table.peft is not None:
        entry = user_defined.from_class(name, table.peft, table.config)
    else:
        entry = _load_entry(reference, spec, source)
    return dataclasses.replace(entry, config={**entry.config, **table.config})


def _load_entry(reference: str, spec: StudySpec, source: Path) -> MethodEntry:
    """Return the method of the catalog or of a file; the nearest name may be the study's own."""
    try:
        return registry.load(reference, source)
    except UsageError as error:
        if error.code != "unknown-method":
            raise
        known = {*registry.names(), *spec.method} - {reference}
        raise unknown_name("unknown-method", "method", reference, known) from error


def _variant(name: str, model: MethodEntry, changes: Mapping[str, Any]) -> MethodEntry:
    """Return ``model`` under another name; the title shows the arguments that differ."""
    plain = all(isinstance(value, str | int | float) for value in changes.values())
    title = name
    if plain and 0 < len(changes) <= MOST_SHOWN:
        title = f"{model.title} ({', '.join(f'{k} = {v}' for k, v in changes.items())})"
    return dataclasses.replace(model, name=name, title=title)


def restore_methods(
    entries: Sequence[MethodEntry], spec: StudySpec, frozen: Mapping[str, Any]
) -> tuple[MethodEntry, ...]:
    """Return the entries with the catalog's values that a study was started with.

    ``frozen`` holds the frozen values of the study, empty for a new one. A method from the user's
    own file is not restored: a change of that file is reported as a difference.
    """
    before = frozen.get("methods", {})
    return tuple(
        MethodEntry(**before[entry.name])
        if entry.name in before and spec.lineage(entry.name)[-1] in registry.names()
        else entry
        for entry in entries
    )
