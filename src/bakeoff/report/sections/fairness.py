"""Section 5, the fairness panel: did every method get the same chance, and what differed."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

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
from bakeoff.report.texts import method_title

ORDER = 50
TITLE = "Was it fair?"

_COLUMNS = (
    Column("Method"),
    Column("Settings", True, "tried"),
    Column("Learning rates", False, "tried"),
    Column("Chosen setting"),
    Column("Best on edge?", False, "of the range tried"),
    Column("Steps", True, "a run"),
    Column("Seeds", True, "final runs"),
    Column("Diverged", True, "runs"),
    Column("Failed", True, "runs"),
)
_SIZE_COLUMNS = (
    Column("Method"),
    Column("Parameters", True, "trained, output layer left out"),
    Column("Off target", True),
    Column("Size"),
    Column("Note"),
)
_LANES_POSITION = 7
"""The place of ``_LANES`` where there is an engine to speak of."""
_LANES = Column("In lanes", True, "runs a step")


def build(report: dict[str, Any]) -> SectionView:
    """Show what each method was given, and say aloud where it was not the same."""
    study, methods = report["study"], report.get("methods") or []
    if not methods:
        return SectionView()
    if report.get("imported"):
        return _imported_section(report["imported"], methods, study)
    blocks: list[Block] = [Text(*_budget_summary(methods))]
    sped = any(accelerators.engine(m) for m in methods)
    rows = tuple(_row(m, study, sped) for m in methods)
    columns = (
        (*_COLUMNS[:_LANES_POSITION], _LANES, *_COLUMNS[_LANES_POSITION:]) if sped else _COLUMNS
    )
    blocks.append(TableBlock("What every method was given", columns, rows, sheet="fairness"))
    blocks.append(Text(_varied_hyperparameters(methods), "muted"))
    blocks += _time_budget(report)
    blocks += _parameter_sizes(report)
    if sped:
        blocks += _acceleration(methods)
    blocks += _test_changes(study)
    lead = (
        "Base model, data, batch order, steps, schedule, precision and evaluation code are the "
        f"same for every run. Settings were chosen on validation; {_test_evaluations(study)}."
    )
    return SectionView(tuple(blocks), lead)


def _imported_section(
    imported: dict[str, Any], methods: list[dict[str, Any]], study: dict[str, Any]
) -> SectionView:
    """Say what another tool's runs had in common, which it does not vouch for, and what not."""
    values = [
        Fact(key, ", ".join(f"{value}: {n}" for value, n in found.items()))
        for key, found in imported["differing"].items()
    ]
    blocks: list[Block] = [
        Text("Nobody gave these methods the same tuning budget: each row is one setting that its "
             "authors chose, trained once.", "warning"),
        TableBlock("What every experiment was given", _COLUMNS, tuple(
            _row(m, study, sped=False) for m in methods)),
    ]  # fmt: skip
    if values:
        blocks += [
            Text("Training parameters that differ beside the learning rate, with the number of "
                 "experiments that had each:"),
            Facts(tuple(values)),
        ]  # fmt: skip
    return SectionView(tuple(blocks), f"Imported from {imported['source']}.")


def _test_evaluations(study: dict[str, Any]) -> str:
    """Say how often the test set was read; a report that does not count is of one look."""
    looks = study.get("test_looks")
    if looks == 0:
        return "the test set has not been read yet"
    times = "once" if looks in (None, 1) else f"{looks} times"
    return f"the test set was read {times}"


def _test_changes(study: dict[str, Any]) -> list[Block]:
    """Say what was changed before each further look at the test set."""
    changes = study.get("test_changes") or []
    if not changes:
        return []
    text = (
        f"The test set was read {study.get('test_looks')} times. What was seen may have led to "
        "what was changed, so the 5 % error no longer covers the verdicts of later looks."
    )
    facts = tuple(
        Fact(f"Before look {number}, {look['at']}", "; ".join(look["changes"]))
        for number, look in enumerate(changes, start=2)
    )
    return [Text(text, "warning"), Facts(facts)]


def _budget_summary(methods: list[dict[str, Any]]) -> tuple[str, str]:
    """Return a sentence on the tuning budget and its tone."""
    # A method whose every setting failed has no final seeds to give: its row says why.
    done = [m for m in methods if m.get("status") == "done"]
    able = [m for m in methods if m.get("status") != "incompatible"]
    odd = []
    for read, noun, group in ((_n_initial_settings, "setting", able), (_n_seeds, "seed", done)):
        counts = Counter(read(m) for m in group)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            names = [f"{method_title(m)} {read(m)}" for m in group if read(m) != usual]
            odd.append(f"most methods have {plural(usual, noun)}, but {', '.join(names)}")
    if odd:
        return f"Not the same for all: {'; '.join(odd)}.", "warning"
    settings = _n_initial_settings(able[0]) if able else 0
    if not settings:
        return "Nothing was trained yet.", "muted"
    seeds = _n_seeds(done[0]) if done else 0
    each = plural(settings, "setting"), plural(seeds, "seed")
    text = f"Every method got {each[0]} and {each[1]}"
    wider = [
        f"{method_title(m)} {m['n_settings_added']}" for m in able if m.get("n_settings_added")
    ]
    more = (
        " More were tried where the best learning rate lay at the edge of the grid: "
        f"{', '.join(wider)}."
        if wider
        else ""
    )
    return f"{text}, the control included.{more}", "plain"


def _n_initial_settings(method: dict[str, Any]) -> int:
    """Return the settings that a method was given, without those that its grid grew by."""
    return (method.get("n_settings") or 0) - (method.get("n_settings_added") or 0)


def _n_seeds(method: dict[str, Any]) -> int:
    return method.get("n_seeds") or 0


def _varied_hyperparameters(methods: list[dict[str, Any]]) -> str:
    """Say which hyperparameters besides the learning rate were varied."""
    keys: set[str] = set()
    for method in methods:
        settings = [s.get("setting") or {} for s in method.get("settings") or []]
        names = {k for s in settings for k in s} - {"learning_rate"}
        keys |= {k for k in names if len({repr(s.get(k)) for s in settings}) > 1}
    if not keys:
        return "Between the settings of a method only the learning rate differed."
    return f"Besides the learning rate, settings differed in: {', '.join(sorted(keys))}."


def _time_budget(report: dict[str, Any]) -> list[Block]:
    """Say what the hours bought, where the budget is in hours."""
    bought = report.get("hours")
    if not bought:
        return []
    text = (
        f"The budget was {bought['hours']:g} hours. From steps timed on this machine they bought "
        f"{plural(bought['settings'], 'setting')}, "
        f"{plural(bought['seeds'], 'seed')} "
        f"and {bought['steps']:,} steps a run ({bought['passes']:.2g} passes over the training "
        f"rows); final runs took {bought['final_steps']:,}, which filled what the search had left."
    )
    if bought["used"] is not None:
        text += f" {bought['used']:.2g} hours were used so far."
    left_out = ", ".join(bought["dropped"])
    more = f"Left out, from the end of the list of contenders: {left_out}."
    return [Text(text), *([Text(more, "warning")] if left_out else [])]


def _parameter_sizes(report: dict[str, Any]) -> list[Block]:
    """Say how many parameters each method trained, and whether they were made equal."""
    sizes = report.get("sizes")
    if sizes is None:
        return [
            Text("Every method trained as many parameters as its default has: see All numbers.")
        ]
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    odd = [titles.get(s["method"], s["method"]) for s in sizes if not s["matched"]]
    text = f"Methods were sized to train about {sizes[0]['target']:,} parameters each"
    text += f"; more than 10 % off: {', '.join(odd)}." if odd else ", and all do within 10 %."
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
        Text(text, "warning" if odd else "plain"),
        TableBlock("How large every method was made", _SIZE_COLUMNS, tuple(rows)),
    ]


def _acceleration(methods: list[dict[str, Any]]) -> list[Block]:
    """Say which accelerators every method ran with, and why some went without."""
    engines = [e for m in methods if (e := accelerators.engine(m))]
    named = dict.fromkeys(n for e in engines for part in ("on", "off") for n in e.get(part) or ())
    alike = [n for n in named if all(n in (e.get("on") or ()) for e in engines)]
    given = [{**dict.fromkeys(e.get("on") or (), "on"), **(e.get("off") or {})} for e in engines]
    nobody = [n for n in named if not any(e.get(n) for e in given)]
    exceptions: dict[str, list[str]] = defaultdict(list)
    for method in methods:
        if lines := _missing_reasons(method, methods):
            exceptions["\n".join(lines)].append(method_title(method))
    text = (
        "Runs in lanes share each step. Lanes and the other accelerators changed how fast a method "
        "ran, not what it scored: before any run, each was tried for each method against the plain "
        "path, and kept where one step gave the same losses and gradients within rounding."
    )
    text += f" On for all: {', '.join(alike)}." if alike else ""
    text += f" Off for all: {', '.join(nobody)}." if nobody else ""
    text += " These went without:" if exceptions else " Every method had the same."
    facts = tuple(Fact(", ".join(titles), lines) for lines, titles in exceptions.items())
    return [Text(text), Facts(facts)] if facts else [Text(text)]


def _missing_reasons(method: dict[str, Any], methods: list[dict[str, Any]]) -> list[str]:
    """Return a line for each reason why a method went without an accelerator.

    What no method had and no probe gave a reason for was never asked for: it is no exception.
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
        parts = ["one by one"] if accelerators.LANES in names else []
        rest = [n for n in names if n != accelerators.LANES]
        parts += [f"without {', '.join(rest)}"] if rest else []
        lines.append(f"{', '.join(parts)}: {reason}")
    others = (accelerators.engine(m).get("lanes") or 1 for m in methods)
    rode_nowhere = engine.get("lanes") == 1 and accelerators.LANES in (engine.get("on") or ())
    if rode_nowhere and max(others) > 1:
        lines.append("one by one: lanes were on, but its runs could not be trained together")
    return lines


def _lanes_text(method: dict[str, Any]) -> str:
    lanes = accelerators.engine(method).get("lanes")
    return "one by one" if lanes == 1 else _number(lanes)


def _row(method: dict[str, Any], study: dict[str, Any], sped: bool) -> TableRow:
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
    ridden = (Cell(_lanes_text(method)),) if sped else ()
    return TableRow(
        (*cells[:_LANES_POSITION], *ridden, *cells[_LANES_POSITION:]), pinned=is_control
    )


def _settings(method: dict[str, Any]) -> str:
    text, added = _number(method.get("n_settings")), method.get("n_settings_added")
    return f"{text} ({added} added)" if added else text


def _number(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"
