"""Provenance: everything needed to repeat the study, and the time it took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bakeoff.core.format import DASH, format_seconds, plural
from bakeoff.report.blocks import Block, Fact, Facts, SectionView, Text

ORDER = 100
TITLE = "Provenance"

_TIMES = (
    ("wall_seconds", "Whole study, wall clock"),
    ("train_seconds", "Training"),
    ("evaluation_seconds", "Evaluation"),
    ("load_seconds", "Loading"),
)


def build(report: dict[str, Any]) -> SectionView:
    """Show the parent of a fork, the timing, then every provenance value by its dotted name."""
    timing, known = report.get("timing") or {}, dict(report.get("provenance") or {})
    parent = known.pop("forked_from", None)
    times = tuple(
        Fact(text, format_seconds(timing[key]))
        for key, text in _TIMES
        if timing.get(key) is not None
    )
    facts = tuple(Fact(name, value, code=True) for name, value in _flatten(known))
    blocks: list[Block] = [*_parent(parent), *(Facts(f) for f in (times, facts) if f)]
    if not facts:
        blocks.append(Text("No provenance was recorded.", "warning"))
    blocks.append(Text(f"Report schema {report.get('schema')}.", "muted"))
    return SectionView(tuple(blocks))


def _parent(parent: dict[str, Any] | None) -> list[Block]:
    """Describe the study that this one was forked from, and the differences."""
    if not parent:
        return []
    reused, count = parent["trials_taken"], parent["test_reads"]
    evaluated = f"had been evaluated {plural(count, 'time')}" if count else "had not been evaluated"
    rows = "the same rows as here" if parent["same_test"] else "other rows than here"
    text = (
        f"Forked from the study in the folder {parent['folder']} at {parent['at']}, reusing "
        f"{plural(reused, 'trial')}. Its test set ({rows}) {evaluated} by then. Differences "
        "(old -> new):"
    )
    facts = []
    for line in parent["differences"] or []:
        key, _, values = line.partition(": ")
        facts.append(Fact(key, values, code=True))
    return [Text(text), Facts(tuple(facts)) if facts else Text("none", "muted")]


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(not isinstance(v, dict | list) for v in value):
        yield name, " ".join(str(v) for v in value)
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from _flatten(inner, f"{name}.{i}")
    else:
        yield name, DASH if value in (None, {}, []) else str(value)
