"""Costs of every method: time, memory by phase, checkpoint size, inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bakeoff.core.format import format_bytes, format_count, format_milliseconds, format_seconds
from bakeoff.report import accelerators
from bakeoff.report.blocks import (
    BarRow,
    Bars,
    BarSegment,
    Block,
    Cell,
    Column,
    LegendEntry,
    SectionView,
    TableBlock,
    TableRow,
    Text,
)
from bakeoff.report.texts import lane_costs_text, method_title

ORDER = 80
TITLE = "Costs"

_ABSENT = "not measured"
_WIDTH = 96.0  # percent of the plot's width that the longest bar takes

Method = dict[str, Any]


@dataclass(frozen=True)
class _CostColumn:
    column: Column
    key: str
    write: Callable[[float | None], str]
    marked: Callable[[Method, list[Method]], list[str]] | None = None


_FIELDS = (
    _CostColumn(Column("Step", True, "training, median"), "step_milliseconds",
           format_milliseconds, accelerators.missing_for_costs),
    _CostColumn(Column("Speed", True, "tokens/s, training"), "train_tokens_per_second",
           format_count, accelerators.missing_for_costs),
    _CostColumn(Column("Run", True, "time, mean over seeds"), "train_seconds", format_seconds,
           accelerators.missing_accelerators),
    _CostColumn(Column("Base", True, "memory"), "base_bytes", format_bytes),
    _CostColumn(Column("Training", True, "memory above the base"), "train_above_base_bytes",
           format_bytes, accelerators.missing_for_costs),
    _CostColumn(Column("Checkpoint", True, "on disk"), "adapter_bytes", format_bytes),
    _CostColumn(Column("Inference", True, "per example, adapter separate"),
           "inference_milliseconds", format_milliseconds),
    _CostColumn(Column("Inference", True, "per example, adapter merged"),
           "inference_merged_milliseconds", format_milliseconds),
)  # fmt: skip


def build(report: dict[str, Any]) -> SectionView:
    """Show memory by phase as bars, then every cost as a number."""
    methods = report.get("methods") or []
    known = [m for m in methods if any(_cost(m, f.key) is not None for f in _FIELDS)]
    if not known:
        return SectionView()
    control = report["study"].get("control")
    rows = tuple(
        TableRow(
            (Cell(method_title(m)), *(_cell(m, f, methods) for f in _FIELDS)),
            pinned=m.get("method") == control,
        )
        for m in known
    )
    columns = (Column("Method"), *(f.column for f in _FIELDS))
    bars = _bars(known)
    blocks: list[Block] = [] if bars is None else [bars]
    blocks.append(TableBlock("All costs", columns, rows, sortable=True, sheet="costs"))
    lanes = lane_costs_text(report)
    blocks += [] if lanes is None else [Text(f"{lanes}.")]
    note = accelerators.footnote(methods, accelerators.missing_accelerators)
    blocks += [] if note is None else [Text(note, "muted")]
    return SectionView(tuple(blocks), _lead(report, known))


def _lead(report: dict[str, Any], known: list[Method]) -> str:
    if report.get("imported"):
        return "As reported by the other tool."
    kinds = {(m.get("cost") or {}).get("memory_kind") for m in known}
    text = (
        "Step time and memory come from a cost probe, which runs one method at a time in its own "
        "process. The time of a run is its share of the steps that trials took together."
    )
    if "rss_above_base" in kinds:
        text += (
            " On a CPU, memory is the resident memory of the process relative to the loaded base."
        )
    if "device" in kinds:
        text += " On an accelerator, memory is the peak allocation on the device."
    return text


def _cost(method: Method, key: str) -> float | None:
    value = (method.get("cost") or {}).get(key)
    return None if value is None else float(value)


def _cell(method: Method, field: _CostColumn, methods: list[Method]) -> Cell:
    value = _cost(method, field.key)
    if value is None:
        return Cell(_ABSENT)
    mark = field.marked is not None and field.marked(method, methods)
    return Cell(field.write(value) + (f" {accelerators.MARK}" if mark else ""), value)


def _bars(methods: list[Method]) -> Bars | None:
    """Return bars of the base and the memory that training adds; None without measurements."""
    pairs = [(_cost(m, "base_bytes"), _cost(m, "train_above_base_bytes")) for m in methods]
    longest = max(((base or 0.0) + (above or 0.0) for base, above in pairs), default=0.0)
    if not longest:
        return None
    scale = _WIDTH / longest
    rows = []
    for method, (base, above) in zip(methods, pairs, strict=True):
        if base is None or above is None:
            rows.append(BarRow(method_title(method), (), _ABSENT))
            continue
        pieces = (
            BarSegment("base", 0.0, round(scale * base, 3)),
            BarSegment("added", round(scale * base, 3), round(scale * (base + above), 3)),
        )
        numbers = f"{format_bytes(base)} + {format_bytes(above)}"
        rows.append(BarRow(method_title(method), pieces, numbers))
    keys = (
        LegendEntry("base", "base model"),
        LegendEntry("added", "peak increase in training"),
    )
    return Bars("Memory by phase", keys, tuple(rows))
