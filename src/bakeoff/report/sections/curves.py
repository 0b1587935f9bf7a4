"""Learning curves: training and validation loss by step, one panel per method.

A panel has a line for each final seed, the search runs in the background, the rungs as vertical
lines and a mark on every search run that was stopped at a rung.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bakeoff.core.format import format_learning_rate, format_significant, plural
from bakeoff.report.blocks import Chart, ChartAxis, Grid, Pane, SectionView, Series
from bakeoff.report.texts import method_title

ORDER = 70
TITLE = "Learning curves"

_SEED_ROLES = 3
_TRAINING, _VALIDATION = "train_loss", "validation_loss"
_NAMES = {_TRAINING: "training", _VALIDATION: "validation"}

Method = dict[str, Any]


@dataclass(frozen=True)
class _Line:
    name: str
    trial: str
    steps: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Lines:
    """A method's lines of one loss: the main ones and the search runs in the background."""

    shown: tuple[_Line, ...]
    behind: tuple[_Line, ...]


@dataclass(frozen=True)
class _Context:
    """Data shared by all panels; axes and control lines are by loss."""

    axes: dict[str, ChartAxis]
    control: dict[str, _Line | None]
    rungs: tuple[float, ...]
    decisions: dict[str, list[dict[str, Any]]]


def build(report: dict[str, Any]) -> SectionView:
    """Show a small chart for each method with the control's mean in the background."""
    study, methods = report["study"], report.get("methods") or []
    lines = {_name(m): {key: _lines(m, key) for key in _NAMES} for m in methods}
    shown = [m for m in methods if any(of.shown for of in lines[_name(m)].values())]
    if not shown:
        return SectionView()
    race = report.get("race") or {}
    decisions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    steps = study.get("steps")
    for decision in race.get("decisions") or []:
        # at the end of a replicate there is nothing left to stop: one of the runs is chosen
        if steps and (decision.get("step") or 0) >= steps:
            continue
        decisions[str(decision.get("method"))].append(decision)
    of_control = lines.get(str(study.get("control")), {})
    context = _Context(
        {key: axis for key in _NAMES if (axis := _loss_axis(shown, lines, key)) is not None},
        {key: _mean(of_loss.shown) for key, of_loss in of_control.items()},
        tuple(float(r) for r in race.get("rungs") or () if r is not None),
        decisions,
    )
    charts = tuple(_chart(m, lines[_name(m)], context, study) for m in shown)
    return SectionView((Grid(charts, size="small", sheet="curves"),), _lead(context))


def _lead(context: _Context) -> str:
    text = (
        "Training loss (top; the mean since the previous reading) and validation loss (bottom) by "
        "step, one line per final run (for a method without final runs, one per search run). The "
        "thick grey line is the control's mean. A line that leaves its panel has diverged."
    )
    if context.rungs:
        text += (
            " Vertical lines are the rungs of racing; thin lines are search runs, and a cross "
            "marks one that was stopped there (point at it for the reason)."
        )
    return text


def _name(method: Method) -> str:
    return str(method.get("method"))


def _lines(method: Method, key: str) -> _Lines:
    curves, scored = method.get("curves") or [], _scored_trials(method)
    final = [c for c in curves if _is_final(c, scored)]
    search = [c for c in curves if not _is_final(c, scored)]

    def build_lines(chosen: list[dict[str, Any]]) -> tuple[_Line, ...]:
        return tuple(line for c in chosen if (line := _line(c, key, _is_final(c, scored))).steps)

    return (
        _Lines(build_lines(final), build_lines(search))
        if final
        else _Lines(build_lines(search), ())
    )


def _scored_trials(method: Method) -> set[str]:
    return {str(s.get("trial_id")) for s in method.get("seeds") or []}


def _is_final(curve: dict[str, Any], scored: set[str]) -> bool:
    """Tell whether a curve is that of a final trial, or of the one chosen in its replicate."""
    phase = curve.get("phase")
    return phase == "final" or (phase == "replicate" and str(curve.get("trial_id")) in scored)


def _line(curve: dict[str, Any], key: str, final: bool) -> _Line:
    points = [p for p in curve.get("points") or [] if p.get(key) is not None]
    points = [p for p in points if p.get("step") is not None]
    rate = format_learning_rate(curve.get("learning_rate"))
    name = f"seed {curve.get('seed')}" if final else f"lr {rate}"
    return _Line(
        name,
        str(curve.get("trial_id")),
        tuple(float(p["step"]) for p in points),
        tuple(float(p[key]) for p in points),
    )


def _mean(lines: tuple[_Line, ...]) -> _Line | None:
    by_step: dict[float, list[float]] = defaultdict(list)
    for line in lines:
        for step, loss in zip(line.steps, line.losses, strict=True):
            by_step[step].append(loss)
    # A step that only some seeds reached would bias the mean.
    full = [s for s in sorted(by_step) if len(by_step[s]) == len(lines)]
    means = tuple(fmean(by_step[s]) for s in full)
    return _Line("control", "", tuple(full), means) if full else None


def _loss_axis(
    methods: list[Method], lines: dict[str, dict[str, _Lines]], key: str
) -> ChartAxis | None:
    done = [m for m in methods if m.get("status") == "done"] or methods
    values = [v for m in done for line in lines[_name(m)][key].shown for v in line.losses]
    if not values:
        return None
    padding = 0.06 * (max(values) - min(values)) or 0.5
    return ChartAxis(_NAMES[key], low=min(values) - padding, high=max(values) + padding)


def _chart(
    method: Method, lines: dict[str, _Lines], context: _Context, study: dict[str, Any]
) -> Chart:
    is_control = method.get("method") == study.get("control")
    panes = tuple(
        _pane(_name(method), key, lines[key], context, is_control)
        for key in _NAMES
        if key in context.axes
    )
    n_final = len(lines[_VALIDATION].shown or lines[_TRAINING].shown)
    n_behind = len(lines[_VALIDATION].behind)
    behind = f", {plural(n_behind, 'search run')} in the background" if n_behind else ""
    return Chart(
        key=f"curves-{method.get('method')}",
        title=method_title(method),
        description=f"losses of {plural(n_final, 'run')} by step{behind}",
        x=ChartAxis("step", low=0.0, high=1.03 * float(study["steps"]))
        if study.get("steps")
        else ChartAxis("step"),
        panes=panes,
        size="small",
    )


def _pane(name: str, key: str, lines: _Lines, context: _Context, is_control: bool) -> Pane:
    axis, reference = context.axes[key], context.control.get(key)
    ends = (axis.low or 0.0, axis.high or 0.0)  # _loss_axis always sets both
    series = [
        Series("rung", "rung", (rung, rung), ends, draw="line", hover=((f"rung {rung:,.0f}",),) * 2)
        for rung in context.rungs
    ]
    series += [Series(x.name, "behind", x.steps, x.losses, draw="line") for x in lines.behind]
    if reference and not is_control:
        grey = ("control, mean", "reference", reference.steps, reference.losses)
        series.append(Series(*grey, draw="line"))
    series += [_seed_series(i, line, key) for i, line in enumerate(lines.shown)]
    if key == _VALIDATION:
        series.append(_stopped_runs(context.decisions.get(name, []), ends))
    return Pane(axis, tuple(s for s in series if s.x))


def _seed_series(place: int, line: _Line, key: str) -> Series:
    return Series(
        line.name,
        f"seed-{place % _SEED_ROLES}",
        line.steps,
        line.losses,
        draw="line",
        hover=tuple(
            (line.name, f"step {s:,.0f}", f"{_NAMES[key]} loss {v:.4g}")
            for s, v in zip(line.steps, line.losses, strict=True)
        ),
    )


def _stopped_runs(decisions: list[dict[str, Any]], ends: tuple[float, float]) -> Series:
    """Mark the stopped runs; one whose loss lies outside is drawn at the panel's edge."""
    stopped = [d for d in decisions if not d.get("goes_on") and d.get("step") is not None]
    low, high = ends
    inside = 0.03 * (high - low)

    def place(loss: float | None) -> float:
        return high - inside if loss is None else min(max(loss, low + inside), high - inside)

    return Series(
        "stopped by racing",
        "lost",
        tuple(float(d["step"]) for d in stopped),
        tuple(place(d.get("mean_loss")) for d in stopped),
        hover=tuple(
            (
                f"lr {format_learning_rate(d.get('learning_rate'))} stopped at {d['step']:,}",
                f"validation loss {format_significant(d.get('mean_loss'), 4)}",
                str(d.get("reason")),
            )
            for d in stopped
        ),
    )
