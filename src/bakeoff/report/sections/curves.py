"""Section 7, learning curves: validation loss by step, one line for each final seed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bakeoff.report import words
from bakeoff.report.blocks import Axis, Chart, Grid, Pane, SectionView, Series

ORDER = 70
TITLE = "Learning curves"

_SEED_ROLES = 3


@dataclass(frozen=True)
class _Line:
    name: str
    steps: tuple[float, ...]
    losses: tuple[float, ...]


def build(report: dict[str, Any]) -> SectionView:
    """Show a small plot for each method with the control's mean behind it."""
    study, methods = report["study"], report.get("methods") or []
    lines = {str(m.get("method")): _lines(m) for m in methods}
    shown = [m for m in methods if lines[str(m.get("method"))]]
    if not shown:
        return SectionView()
    reference = _mean(lines.get(str(study.get("control")), []))
    axis = _loss_axis(shown, lines)
    charts = tuple(_chart(m, lines[str(m.get("method"))], reference, axis, study) for m in shown)
    lead = (
        "Validation loss by step, one line for each final seed (for a method without final runs: "
        "one for each run of the search). The grey line is the control's mean. A line that leaves "
        "its panel diverged."
    )
    return SectionView((Grid(charts, size="small"),), lead)


def _lines(method: dict[str, Any]) -> list[_Line]:
    curves = method.get("curves") or []
    chosen = [c for c in curves if c.get("phase") == "final"] or curves
    made = (_line(c) for c in chosen)
    return [line for line in made if line.steps]


def _line(curve: dict[str, Any]) -> _Line:
    points = [p for p in curve.get("points") or [] if p.get("validation_loss") is not None]
    rate = words.learning_rate(curve.get("learning_rate"))
    name = f"seed {curve.get('seed')}" if curve.get("phase") == "final" else f"lr {rate}"
    return _Line(
        name,
        tuple(float(p["step"]) for p in points),
        tuple(float(p["validation_loss"]) for p in points),
    )


def _mean(lines: list[_Line]) -> _Line | None:
    by_step: dict[float, list[float]] = defaultdict(list)
    for line in lines:
        for step, loss in zip(line.steps, line.losses, strict=True):
            by_step[step].append(loss)
    # A step that only some seeds reached would bend the mean by who is missing.
    full = [s for s in sorted(by_step) if len(by_step[s]) == len(lines)]
    return _Line("control", tuple(full), tuple(fmean(by_step[s]) for s in full)) if full else None


def _loss_axis(methods: list[dict[str, Any]], lines: dict[str, list[_Line]]) -> Axis:
    calm = [m for m in methods if m.get("status") == "done"] or methods
    values = [v for m in calm for line in lines[str(m.get("method"))] for v in line.losses]
    room = 0.06 * (max(values) - min(values)) or 0.5
    return Axis("validation loss", low=min(values) - room, high=max(values) + room)


def _chart(
    method: dict[str, Any],
    lines: list[_Line],
    reference: _Line | None,
    axis: Axis,
    study: dict[str, Any],
) -> Chart:
    series = [
        Series(
            line.name,
            f"seed-{i % _SEED_ROLES}",
            line.steps,
            line.losses,
            draw="line",
            hover=tuple(
                (line.name, f"step {s:,.0f}", f"loss {v:.4g}")
                for s, v in zip(line.steps, line.losses, strict=True)
            ),
        )
        for i, line in enumerate(lines)
    ]
    if reference and method.get("method") != study.get("control"):
        grey = Series("control, mean", "reference", reference.steps, reference.losses, draw="line")
        series.insert(0, grey)
    return Chart(
        key=f"curves-{method.get('method')}",
        title=words.title(method),
        description=f"validation loss of {words.plural(len(lines), 'run')} by step",
        x=Axis("step", low=0.0, high=1.03 * float(study["steps"]))
        if study.get("steps")
        else Axis("step"),
        panes=(Pane(axis, tuple(series)),),
        size="small",
    )
