"""Convergence and stability: divergence, learning-rate plateau, seed variance, loss spikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bakeoff.core.format import (
    DASH,
    DisplayUnit,
    format_learning_rate,
    format_significant,
    score_unit,
)
from bakeoff.report.blocks import Cell, Column, SectionView, TableBlock, TableRow
from bakeoff.report.evidence_texts import is_replicated
from bakeoff.report.texts import method_title

ORDER = 75
TITLE = "Convergence and stability"

Stability = dict[str, Any]


@dataclass(frozen=True)
class _StabilityColumn:
    column: Column
    cell: Callable[[Stability], Cell]


def build(report: dict[str, Any]) -> SectionView:
    """Show a row for every method with a stability measurement."""
    study = report["study"]
    known = [(m, stability) for m in report.get("methods") or [] if (stability := _stability(m))]
    if not known:
        return SectionView()
    fields = _columns(score_unit(study), is_replicated(report))
    rows = tuple(
        TableRow(
            (Cell(method_title(m)), *(f.cell(stability) for f in fields)),
            pinned=m.get("method") == study.get("control"),
        )
        for m, stability in known
    )
    columns = (Column("Method"), *(f.column for f in fields))
    table = TableBlock(
        "Training behaviour of every method", columns, rows, sortable=True, sheet="stability"
    )
    return SectionView((table,), _lead(study, [stability for _, stability in known]))


def _stability(method: dict[str, Any]) -> Stability | None:
    stability = method.get("stability")
    return stability if isinstance(stability, dict) and any(stability.values()) else None


def _lead(study: dict[str, Any], known: list[Stability]) -> str:
    unit, margin = score_unit(study), study.get("margin")
    scored = {(f.get("plateau") or {}).get("by") for f in known} - {None}
    good = [] if margin is None or "score" not in scored else [
        f"{unit.plain(margin)} {unit.word} of validation score".replace("  ", " ")
    ]  # fmt: skip
    good += ["5 % of validation loss"] if "loss" in scored else []
    within = f" (within {' or '.join(good)})" if good else ""
    return (
        "The plateau is the range of learning rates around the best one that give an equally good "
        f"result{within}, in decades: 1 is a factor of ten; ≥ means that it reaches the edge of "
        "the tried rates. A spike is a rise of the training loss between two readings far above "
        "the method's usual change. The area is the mean validation loss during training: lower "
        "means a faster start. Trials that racing stopped count up to the step they reached."
    )


def _columns(unit: DisplayUnit, replicated: bool) -> list[_StabilityColumn]:
    name, noun = ("Replicate SD", "replicates") if replicated else ("Seed SD", "seeds")
    return [
        _StabilityColumn(Column("Diverged", True, "of trials"), _divergence),
        _StabilityColumn(Column("Plateau", True, "decades"), _plateau),
        _StabilityColumn(Column("Range", False, "learning rates"), _span),
        _StabilityColumn(
            Column(name, True, f"{unit.word or 'metric'}, 95 % interval, n {noun}"),
            lambda s: _seed_sd(s, unit),
        ),
        _StabilityColumn(Column("Spikes", True, "of readings"), _spikes),
        _StabilityColumn(Column("To control's loss", True, "steps"), _steps),
        _StabilityColumn(Column("Area", True, "nats"), _area),
    ]


def _divergence(stability: Stability) -> Cell:
    value = stability.get("divergence") or {}
    share = value.get("share")
    if share is None:
        return Cell(DASH)
    text = f"{value.get('diverged')} of {value.get('trials')}"
    return Cell(text, share, tone="warning" if share else None)


def _plateau(stability: Stability) -> Cell:
    value = stability.get("plateau") or {}
    width = value.get("decades")
    if width is None:
        return Cell(DASH)
    return Cell(("≥ " if value.get("open") else "") + f"{width:.1f}", width)


def _span(stability: Stability) -> Cell:
    value = stability.get("plateau") or {}
    if value.get("low") is None:
        return Cell(DASH)
    ends = [format_learning_rate(value[end]) for end in ("low", "high")]
    rates = f"of {value.get('rates')}, by {value.get('by')}"
    at = "" if value.get("step") is None else f" from step {value['step']:,}"
    return Cell(f"{' – '.join(dict.fromkeys(ends))} ({rates}{at})")


def _seed_sd(stability: Stability, unit: DisplayUnit) -> Cell:
    value = stability.get("seed_sd") or {}
    n = value.get("n_seeds")
    text = unit.with_interval(value) + ("" if n is None else f", n {n}")
    return Cell(text, value.get("estimate"))


def _spikes(stability: Stability) -> Cell:
    value = stability.get("spikes") or {}
    count = value.get("count")
    if count is None:
        return Cell(DASH)
    text = f"{count} of {value.get('changes')}"
    return Cell(text, float(count), tone="warning" if count else None)


def _steps(stability: Stability) -> Cell:
    value = stability.get("steps_to_control_loss")
    return Cell(DASH if value is None else f"{value:,}", value)


def _area(stability: Stability) -> Cell:
    value = (stability.get("validation_area") or {}).get("estimate")
    return Cell(format_significant(value), value)
