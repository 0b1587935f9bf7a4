"""Table of all results and costs, one row per method, with the control on top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bakeoff.core.format import (
    DASH,
    DisplayUnit,
    format_bytes,
    format_count,
    format_milliseconds,
    format_p_value,
    format_percent,
    format_seconds,
    format_setting,
    format_significant,
    plural,
    score_unit,
)
from bakeoff.report import accelerators
from bakeoff.report.blocks import Block, Cell, Column, SectionView, TableBlock, TableRow, Text
from bakeoff.report.evidence_texts import agreement_text, is_replicated, seed_noun
from bakeoff.report.texts import method_title, verdict_text

ORDER = 40
TITLE = "All numbers"
SECONDARY = {"macro_f1": "Macro-F1"}
"""Display names of secondary metrics."""

Method = dict[str, Any]

_NATS = DisplayUnit(1.0, "nats", 3)


@dataclass(frozen=True)
class _MethodColumn:
    column: Column
    cell: Callable[[Method], Cell]


def build(report: dict[str, Any]) -> SectionView:
    """Show a row for every method."""
    study, methods = report["study"], report.get("methods") or []
    if not methods:
        return SectionView()
    # imported results have counts only, which are adjusted per interval (count_intervals)
    adjustment = "Šidák" if report.get("imported") else "max-T"
    if is_replicated(report):
        adjustment = "contenders and looks"
    fields = [*_quality(report, adjustment), *_probability(report), *_costs(methods)]
    if any(m.get("front_probability") is not None for m in methods):
        fields.append(_front_column())
    rows = tuple(
        TableRow(tuple(f.cell(m) for f in fields), pinned=m.get("method") == study.get("control"))
        for m in methods
    )
    columns = tuple(f.column for f in fields)
    table = TableBlock(
        "All methods", columns, rows, sortable=True, filterable=True, sheet="methods"
    )
    blocks: list[Block] = [table]
    base = report.get("base")
    if base is not None:
        score = score_unit(study).with_interval(base["score"])
        blocks.append(Text(f"Base model, not fine-tuned: {score}.", "muted"))
    note = accelerators.footnote(methods, accelerators.missing_accelerators)
    if note is not None:
        blocks.append(Text(note, "muted"))
    blocks += _probability_matrix(report)
    return SectionView(tuple(blocks), _lead(report))


def _lead(report: dict[str, Any]) -> str:
    imported, items = report.get("imported"), report["study"].get("n_test_items")
    tested = "" if items is None else f"Scores are means over {plural(items, 'test item')}. "
    looks = " and looks" if is_replicated(report) else ""
    intervals = (
        f"Intervals are 95 %; those of differences are simultaneous over all contenders{looks}. "
    )
    if imported:
        known = "" if imported["no_interval"] else intervals
        return (
            f"{tested}{known}All figures are as reported by {imported['benchmark']}; the step time "
            "is the mean over the training steps."
        )
    if is_replicated(report):
        intervals += (
            "A difference is over the replicates that a contender has in common with the control, "
            "a score over all of a method's. "
        )
    return (
        f"{tested}{intervals}Time and memory were measured for one method at a time, in its own "
        "process."
    )


def _quality(report: dict[str, Any], adjustment: str) -> list[_MethodColumn]:
    study, methods = report["study"], report["methods"]
    chosen_on = "chosen most often" if is_replicated(report) else "chosen on validation"
    unit, items = score_unit(study), study.get("n_test_items")
    word = unit.word or "metric's unit"
    return [
        _MethodColumn(Column("Method"), lambda m: Cell(method_title(m))),
        _MethodColumn(Column("Verdict", facet=True), _verdict),
        _MethodColumn(Column("Score", True, f"{word}, 95 % interval"), lambda m: _score(m, unit)),
        _MethodColumn(
            Column("Difference", True, f"{word}, 95 % interval"), lambda m: _difference(m, unit)
        ),
        *_gain(methods, unit),
        *_secondary(methods),
        _MethodColumn(Column("p", True, f"adjusted ({adjustment})"), _p),
        _MethodColumn(Column("n", True, f"items × {seed_noun(report)}s"), lambda m: _n(m, items)),
        _MethodColumn(Column("Setting", False, chosen_on), _setting),
    ]


def _probability(report: dict[str, Any]) -> list[_MethodColumn]:
    """Return the column of probabilities of being better than the control, if they are known."""
    known, control = report.get("better_probabilities") or {}, report["study"].get("control")
    if not any(control in others for others in known.values()):
        return []

    def cell(method: Method) -> Cell:
        value = (known.get(method.get("method")) or {}).get(control)
        return Cell(format_percent(value), value)

    return [_MethodColumn(Column("P(better)", True, "than the control"), cell)]


def _probability_matrix(report: dict[str, Any]) -> list[Block]:
    """Return a folded table of the probabilities that one method is better than another."""
    known = report.get("better_probabilities") or {}
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    names = [name for name in titles if name in known]
    if len(names) < 3:
        return []
    rows = tuple(
        TableRow(
            (
                Cell(titles[a]),
                *(Cell(format_percent(p := known[a].get(b)), p) for b in names),
            ),
            pinned=a == report["study"].get("control"),
        )
        for a in names
    )
    columns = (Column("Better"), *(Column(titles[b], True) for b in names))
    caption = "Probability that the method of the row is better than that of the column"
    return [TableBlock(caption, columns, rows, folded=True, sheet="probabilities")]


def _gain(methods: list[Method], unit: DisplayUnit) -> list[_MethodColumn]:
    """Return the column of gains over the base model, if that has a score."""
    if all(m.get("gain") is None for m in methods):
        return []

    def cell(method: Method) -> Cell:
        gain = method.get("gain")
        return Cell(unit.with_interval(gain, signed=True), (gain or {}).get("estimate"))

    return [_MethodColumn(Column("Gain over base", True, f"{unit.word}, 95 % interval"), cell)]


def _secondary(methods: list[Method]) -> list[_MethodColumn]:
    """Return a column for each secondary metric; all are fractions."""
    unit = score_unit({"unit": "fraction"})

    def field(name: str) -> _MethodColumn:
        def cell(method: Method) -> Cell:
            value = (method.get("secondary") or {}).get(name)
            return Cell(unit.with_interval(value), (value or {}).get("estimate"))

        return _MethodColumn(
            Column(SECONDARY.get(name, name), True, f"{unit.word}, 95 % interval"), cell
        )

    return [
        field(name) for name in dict.fromkeys(n for m in methods for n in m.get("secondary") or ())
    ]


def _verdict(method: Method) -> Cell:
    return Cell(verdict_text(method), tone=method.get("verdict") or "none")


def _score(method: Method, unit: DisplayUnit) -> Cell:
    score = method.get("score")
    return Cell(unit.with_interval(score), (score or {}).get("estimate"))


def _difference(method: Method, unit: DisplayUnit) -> Cell:
    difference = method.get("difference")
    text = unit.with_interval(difference, signed=True)
    return Cell(text, (difference or {}).get("estimate"))


def _p(method: Method) -> Cell:
    value = (method.get("difference") or {}).get("p_adjusted")
    return Cell(format_p_value(value), value)


def _n(method: Method, items: int | None) -> Cell:
    seeds = method.get("n_seeds")
    if not seeds or items is None or not method.get("score"):
        return Cell(DASH)
    return Cell(f"{items:,} × {seeds}", float(items * seeds))


def _setting(method: Method) -> Cell:
    chosen = method.get("setting") or {}
    agreement = agreement_text(method)
    text = format_setting(chosen) + (f" ({agreement})" if agreement else "")
    return Cell(text, chosen.get("learning_rate"))


def _costs(methods: list[Method]) -> list[_MethodColumn]:
    kinds = {str(k) for m in methods if (k := (m.get("cost") or {}).get("memory_kind"))}
    memory = {
        "device": "device, base included",
        "device_reserved": "reserved on the device, base included",
        "rss_above_base": "above the base",
    }
    kind = ", ".join(memory.get(k, k) for k in sorted(kinds)) or "training"

    def lacks_for_costs(m: Method) -> bool:
        return bool(accelerators.missing_for_costs(m, methods))

    def lacks_any(m: Method) -> bool:
        return bool(accelerators.missing_accelerators(m, methods))

    return [
        _cost("Trainable", "parameters", "trainable_parameters", format_count),
        _cost("Adapter", "on disk", "adapter_bytes", format_bytes),
        _cost("Speed", "tokens/s", "train_tokens_per_second", format_count, lacks_for_costs),
        _cost(
            "Step", "training, median", "step_milliseconds", format_milliseconds, lacks_for_costs
        ),
        _cost("Peak memory", kind, "train_peak_bytes", format_bytes, lacks_for_costs),
        _cost("Training", "time per run", "train_seconds", format_seconds, lacks_any),
        *_forgetting(methods),
        _MethodColumn(Column("To control's loss", True, "steps"), _steps),
    ]


def _forgetting(methods: list[Method]) -> list[_MethodColumn]:
    """Return the columns of forgetting, as measured here or by an imported tool."""
    known = [m.get("forgetting") or {} for m in methods]
    if any("divergence" in f for f in known):
        change = Column("Forgetting", True, "loss on general text, nats/token, 95 %")
        distance = Column("Divergence", True, "KL from base on general text, nats/token, 95 %")
        return [
            _MethodColumn(change, lambda m: _nats(m.get("forgetting"), signed=True)),
            _MethodColumn(distance, lambda m: _nats((m.get("forgetting") or {}).get("divergence"))),
        ]
    if any("estimate" in f for f in known):
        return [_MethodColumn(Column("Forgetting", True, "lower is better"), _reported_forgetting)]
    return []


def _nats(value: dict[str, Any] | None, *, signed: bool = False) -> Cell:
    return Cell(_NATS.with_interval(value, signed=signed), (value or {}).get("estimate"))


def _reported_forgetting(method: Method) -> Cell:
    value = (method.get("forgetting") or {}).get("estimate")
    return Cell(format_significant(value), value)


def _cost(
    title: str,
    hint: str,
    key: str,
    write: Callable[[float | None], str],
    marked: Callable[[Method], bool] = lambda _: False,
) -> _MethodColumn:
    def cell(method: Method) -> Cell:
        value = (method.get("cost") or {}).get(key)
        mark = f" {accelerators.MARK}" if value is not None and marked(method) else ""
        return Cell(write(value) + mark, value)

    return _MethodColumn(Column(title, True, hint), cell)


def _steps(method: Method) -> Cell:
    value = method.get("steps_to_control_loss")
    return Cell(DASH if value is None else f"{value:,}", value)


def _front_column() -> _MethodColumn:
    def cell(method: Method) -> Cell:
        value = method.get("front_probability")
        number = value if isinstance(value, float | int) else None
        return Cell(format_percent(number), number)

    return _MethodColumn(Column("On the front", True, "probability"), cell)
