"""Fairness panel: the tuning budget of every method, and what differed between methods."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from bakeoff.analysis.per_method.accelerators import LANES
from bakeoff.core.format import DASH, format_learning_rate, format_setting, plural
from bakeoff.report import accelerators
from bakeoff.report.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Facts,
    SectionView,
    TableBlock,
    TableRow,
    Text,
)
from bakeoff.report.evidence_texts import is_replicated
from bakeoff.report.texts import method_title

ORDER = 50
TITLE = "Was it fair?"

_COLUMNS = (
    Column("Method"),
    Column("Settings", True, "tried"),
    Column("Learning rates", False, "tried"),
    Column("Chosen setting"),
    Column("Best on edge?", False, "of the range tried"),
    Column("Steps", True, "per run"),
    Column("Seeds", True, "final runs"),
    Column("Diverged", True, "runs"),
    Column("Failed", True, "runs"),
)
_SEEDS_POSITION = 6
_REPLICATES = Column("Replicates", True, "each with its own search")
"""In place of the seeds if each seed repeated the search."""
_AGREEMENT = Column("Agree", True, "replicates that chose it")
_SIZE_COLUMNS = (
    Column("Method"),
    Column("Parameters", True, "trainable, without output layer"),
    Column("Off target", True),
    Column("Size"),
    Column("Note"),
)
_LANES_POSITION = 7
"""Index at which ``_LANES`` is inserted if the report has engine data."""
_LANES = Column("Lanes", True, "runs per step")


def build(report: dict[str, Any]) -> SectionView:
    """Show the tuning budget of each method, with a warning where budgets differ."""
    study, methods = report["study"], report.get("methods") or []
    if not methods:
        return SectionView()
    if report.get("imported"):
        return _imported_section(report["imported"], methods, study)
    replicated = is_replicated(report)
    summary = _replicates_summary(report) if replicated else _budget_summary(methods)
    blocks: list[Block] = [Text(*summary)]
    has_engine = any(accelerators.engine(m) for m in methods)
    rows = tuple(_row(m, study, has_engine, replicated) for m in methods)
    columns = _columns(has_engine, replicated)
    blocks.append(TableBlock("Tuning budget of every method", columns, rows, sheet="fairness"))
    blocks.append(Text(_varied_hyperparameters(methods), "muted"))
    blocks += _time_budget(report)
    blocks += _parameter_sizes(report)
    if has_engine:
        blocks += _acceleration(methods)
    blocks += _test_changes(report)
    lead = (
        "Base model, data, batch order, steps, schedule, precision and evaluation code are the "
        f"same for every run. Settings were chosen on validation; {_test_evaluations(study)}."
    )
    return SectionView(tuple(blocks), lead)


def _columns(has_engine: bool, replicated: bool) -> tuple[Column, ...]:
    columns = list(_COLUMNS)
    if replicated:
        columns[_SEEDS_POSITION] = _REPLICATES
    if has_engine:
        columns.insert(_LANES_POSITION, _LANES)
    return (*columns, _AGREEMENT) if replicated else tuple(columns)


def _imported_section(
    imported: dict[str, Any], methods: list[dict[str, Any]], study: dict[str, Any]
) -> SectionView:
    """Show the settings of another tool's runs, which have no common tuning budget."""
    values = [
        Fact(key, ", ".join(f"{value}: {n}" for value, n in counts.items()))
        for key, counts in imported["differing"].items()
    ]
    blocks: list[Block] = [
        Text("These methods did not have the same tuning budget: each row is one setting that its "
             "authors chose, trained once.", "warning"),
        TableBlock("Settings of every experiment", _COLUMNS, tuple(
            _row(m, study, has_engine=False, replicated=False) for m in methods)),
    ]  # fmt: skip
    if values:
        blocks += [
            Text("Training parameters other than the learning rate that differ, with the number "
                 "of experiments for each value:"),
            Facts(tuple(values)),
        ]  # fmt: skip
    return SectionView(tuple(blocks), f"Imported from {imported['source']}.")


def _test_evaluations(study: dict[str, Any]) -> str:
    """Return how often the test set was evaluated; a report without a count means once."""
    count = study.get("test_looks")
    if count == 0:
        return "the test set has not been evaluated yet"
    times = "once" if count in (None, 1) else f"{count} times"
    return f"the test set was evaluated {times}"


def _test_changes(report: dict[str, Any]) -> list[Block]:
    """List the changes before each further test-set evaluation."""
    study, rounds = report["study"], report.get("rounds") or {}
    changes = study.get("test_changes") or []
    if not changes:
        return []
    text = f"The test set was evaluated {study.get('test_looks')} times. "
    if rounds.get("reserve"):
        spent, reserve = (100 * (rounds.get(key) or 0.0) for key in ("reserve_spent", "reserve"))
        text += (
            f"Further evaluations have spent {spent:.3g} of the {reserve:.3g} % error that is "
            "reserved for them, so the 5 % error rate holds for all verdicts that are not marked "
            "as exploratory."
        )
    else:
        text += (
            "Earlier results may have influenced later changes, so the 5 % error rate does not "
            "hold for the later verdicts."
        )
    facts = tuple(
        Fact(f"Before evaluation {number}, {entry['at']}", "; ".join(entry["changes"]))
        for number, entry in enumerate(changes, start=2)
    )
    return [Text(text, "warning"), Facts(facts)]


def _budget_summary(methods: list[dict[str, Any]]) -> tuple[str, str]:
    """Return a sentence on the tuning budget and its tone."""
    # A method whose settings all failed has no final seeds; its row gives the reason.
    done = [m for m in methods if m.get("status") == "done"]
    able = [m for m in methods if m.get("status") != "incompatible"]
    unequal = []
    for read, noun, group in ((_n_initial_settings, "setting", able), (_n_seeds, "seed", done)):
        counts = Counter(read(m) for m in group)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            names = [f"{method_title(m)} {read(m)}" for m in group if read(m) != usual]
            unequal.append(f"most methods have {plural(usual, noun)}, but {', '.join(names)}")
    if unequal:
        return f"Not the same for all: {'; '.join(unequal)}.", "warning"
    settings = _n_initial_settings(able[0]) if able else 0
    if not settings:
        return "Nothing has been trained yet.", "muted"
    seeds = _n_seeds(done[0]) if done else 0
    each = plural(settings, "setting"), plural(seeds, "seed")
    text = f"Every method got {each[0]} and {each[1]}"
    return f"{text}, the control included.{_added_settings(able)}", "plain"


def _added_settings(methods: list[dict[str, Any]]) -> str:
    """Name the methods that tried more settings because their best was at the grid's edge."""
    wider = [
        f"{method_title(m)} {m['n_settings_added']}" for m in methods if m.get("n_settings_added")
    ]
    if not wider:
        return ""
    return (
        " More were tried where the best learning rate was at the edge of the grid: "
        f"{', '.join(wider)}."
    )


def _replicates_summary(report: dict[str, Any]) -> tuple[str, str]:
    """Return a sentence on the tuning budget of a study of replicates, and its tone.

    Replicates may differ: a contender gets no more of them once it is settled.
    """
    able = [m for m in report.get("methods") or [] if m.get("status") != "incompatible"]
    counts = Counter(_n_initial_settings(m) for m in able if m.get("settings"))
    if not counts:
        return "Nothing has been trained yet.", "muted"
    usual = counts.most_common(1)[0][0]
    others = [
        f"{method_title(m)} {n}"
        for m in able
        if m.get("settings") and (n := _n_initial_settings(m)) != usual
    ]
    if others:
        return (
            f"Not the same for all: most methods tried {plural(usual, 'setting')} in each "
            f"replicate, but {', '.join(others)}.",
            "warning",
        )
    text = f"Every method tried {plural(usual, 'setting')} in each replicate, the control included."
    if report["rounds"].get("mode") == "rounds":
        text += (
            " A contender gets no more replicates once it is settled; the control gets as many as "
            "the last contender."
        )
    return text + _added_settings(able), "plain"


def _n_initial_settings(method: dict[str, Any]) -> int:
    """Return a method's number of settings, without those added at the edge of the grid."""
    return (method.get("n_settings") or 0) - (method.get("n_settings_added") or 0)


def _n_seeds(method: dict[str, Any]) -> int:
    return method.get("n_seeds") or 0


def _varied_hyperparameters(methods: list[dict[str, Any]]) -> str:
    """Name the hyperparameters besides the learning rate that were varied."""
    keys: set[str] = set()
    for method in methods:
        settings = [s.get("setting") or {} for s in method.get("settings") or []]
        names = {k for s in settings for k in s} - {"learning_rate"}
        keys |= {k for k in names if len({repr(s.get(k)) for s in settings}) > 1}
    if not keys:
        return "The settings of a method differed only in the learning rate."
    return f"Besides the learning rate, settings differed in: {', '.join(sorted(keys))}."


def _time_budget(report: dict[str, Any]) -> list[Block]:
    """Describe how a budget in hours was spent."""
    budget = report.get("hours")
    if not budget:
        return []
    looks = budget.get("looks") or []
    text = (
        f"The budget was {budget['hours']:g} hours. By step times measured here, it allowed "
        f"{plural(budget['settings'], 'setting')}, {'up to ' if len(looks) > 1 else ''}"
        f"{plural(budget['seeds'], 'seed')} "
        f"and {budget['steps']:,} steps per run ({budget['passes']:.2g} epochs of the training "
        "rows)"
    )
    # studies of an older protocol set the steps of their final runs after the search
    text += f"; final runs took {budget['final_steps']:,} steps." if not looks else "."
    if budget["used"] is not None:
        text += f" {budget['used']:.2g} hours have been used so far."
    left_out = ", ".join(budget["dropped"])
    more = f"Dropped from the end of the list of contenders: {left_out}."
    return [Text(text), *([Text(more, "warning")] if left_out else [])]


def _parameter_sizes(report: dict[str, Any]) -> list[Block]:
    """Describe how many parameters each method trained, and whether the sizes match."""
    sizes = report.get("sizes")
    if sizes is None:
        return [
            Text("Every method has its default number of trainable parameters: see All numbers.")
        ]
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    unmatched = [titles.get(s["method"], s["method"]) for s in sizes if not s["matched"]]
    text = f"Methods were sized to about {sizes[0]['target']:,} trainable parameters each"
    text += f"; more than 10 % off: {', '.join(unmatched)}." if unmatched else ", all within 10 %."
    rows = [
        TableRow(
            (
                Cell(titles.get(s["method"], s["method"])),
                Cell(_number(s["parameters"])),
                Cell(DASH if s["off"] is None else f"{100 * s['off']:+.1f} %"),
                Cell(DASH if s["value"] is None else f"{s['argument']} = {s['value']}"),
                Cell(s["note"] or DASH),
            ),
            pinned=s["method"] == report["study"].get("control"),
        )
        for s in sizes
    ]
    return [
        Text(text, "warning" if unmatched else "plain"),
        TableBlock("Size of every method", _SIZE_COLUMNS, tuple(rows)),
    ]


def _acceleration(methods: list[dict[str, Any]]) -> list[Block]:
    """Describe the accelerators of all methods, and why some methods lacked one."""
    engines = [e for m in methods if (e := accelerators.engine(m))]
    names = dict.fromkeys(n for e in engines for part in ("on", "off") for n in e.get(part) or ())
    on_for_all = [n for n in names if all(n in (e.get("on") or ()) for e in engines)]
    states = [{**dict.fromkeys(e.get("on") or (), "on"), **(e.get("off") or {})} for e in engines]
    off_for_all = [n for n in names if not any(e.get(n) for e in states)]
    exceptions: dict[str, list[str]] = defaultdict(list)
    for method in methods:
        if lines := _missing_reasons(method, methods):
            exceptions["\n".join(lines)].append(method_title(method))
    text = (
        "Lanes batch several runs of a method into one training step. Accelerators change speed, "
        "not scores: before any run, each was checked for each method against the "
        "plain code and used only if one step gave the same losses and gradients up to rounding."
    )
    text += f" On for all: {', '.join(on_for_all)}." if on_for_all else ""
    text += f" Off for all: {', '.join(off_for_all)}." if off_for_all else ""
    text += " Exceptions:" if exceptions else " Every method had the same."
    facts = tuple(Fact(", ".join(titles), lines) for lines, titles in exceptions.items())
    return [Text(text), Facts(facts)] if facts else [Text(text)]


def _missing_reasons(method: dict[str, Any], methods: list[dict[str, Any]]) -> list[str]:
    """Return a line for each reason why a method lacked an accelerator.

    An accelerator that no method had and that no check refused was not requested: no exception.
    """
    engine, lacking = (
        accelerators.engine(method),
        accelerators.missing_accelerators(method, methods),
    )
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in (engine.get("off") or {}).items():
        if reason or name in lacking:
            by_reason[reason or "not tried"].append(name)
    lines = []
    for reason, names in by_reason.items():
        parts = ["sequentially"] if LANES in names else []
        rest = [n for n in names if n != LANES]
        parts += [f"without {', '.join(rest)}"] if rest else []
        lines.append(f"{', '.join(parts)}: {reason}")
    others = (accelerators.engine(m).get("lanes") or 1 for m in methods)
    lanes_unused = engine.get("lanes") == 1 and LANES in (engine.get("on") or ())
    if lanes_unused and max(others) > 1:
        lines.append("sequentially: lanes were on, but its runs could not be trained together")
    return lines


def _lanes_text(method: dict[str, Any]) -> str:
    lanes = accelerators.engine(method).get("lanes")
    return "sequential" if lanes == 1 else _number(lanes)


def _row(
    method: dict[str, Any], study: dict[str, Any], has_engine: bool, replicated: bool
) -> TableRow:
    tried = sorted(
        {
            rate
            for s in method.get("settings") or []
            if (rate := (s.get("setting") or {}).get("learning_rate")) is not None
        }
    )
    edge = method.get("best_setting_on_edge")
    edge_text = DASH if not method.get("setting") or edge is None else "yes" if edge else "no"
    is_control = method.get("method") == study.get("control")
    cells = (
        Cell(method_title(method) + (" (control)" if is_control else "")),
        Cell(_settings(method)),
        Cell(", ".join(format_learning_rate(r) for r in tried) or DASH),
        Cell(format_setting(method.get("setting"))),
        Cell(edge_text, tone="warning" if edge else None),
        Cell(_number(study.get("steps"))),
        Cell(_number(method.get("n_seeds"))),
        Cell(_number(method.get("n_trials_diverged"))),
        Cell(_number(method.get("n_trials_failed"))),
    )
    lanes = (Cell(_lanes_text(method)),) if has_engine else ()
    cells = (*cells[:_LANES_POSITION], *lanes, *cells[_LANES_POSITION:])
    return TableRow((*cells, _agreement(method)) if replicated else cells, pinned=is_control)


def _agreement(method: dict[str, Any]) -> Cell:
    known = method.get("agreement") or {}
    if not known.get("replicates"):
        return Cell(DASH)
    share = known["chosen"] / known["replicates"]
    return Cell(f"{known['chosen']} of {known['replicates']}", share)


def _settings(method: dict[str, Any]) -> str:
    text, added = _number(method.get("n_settings")), method.get("n_settings_added")
    return f"{text} ({added} added)" if added else text


def _number(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"
