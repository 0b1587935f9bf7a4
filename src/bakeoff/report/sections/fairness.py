"""Section 5, the fairness panel: did every method get the same chance, and what differed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bakeoff.report import words
from bakeoff.report.blocks import Block, Cell, Column, Row, SectionView, Table, Text

ORDER = 50
TITLE = "Was it fair?"

_COLUMNS = (
    Column("Method"),
    Column("Settings tried", True),
    Column("Learning rates tried"),
    Column("Chosen setting"),
    Column("Best on edge?", False, "of the range tried"),
    Column("Steps", True, "a run"),
    Column("Seeds", True, "final runs"),
    Column("Diverged", True, "runs"),
    Column("Failed", True, "runs"),
)


def build(report: dict[str, Any]) -> SectionView:
    """Show what each method was given, and say aloud where it was not the same."""
    study, methods = report["study"], report.get("methods") or []
    if not methods:
        return SectionView()
    blocks: list[Block] = [Text(*_equal(methods))]
    rows = tuple(_row(m, study) for m in methods)
    blocks.append(Table("What every method was given", _COLUMNS, rows))
    blocks.append(Text(_differed(methods), "muted"))
    lead = (
        "Base model, data, batch order, steps, schedule, precision and evaluation code are the "
        "same for every run. Settings were chosen on validation; the test set was read once."
    )
    return SectionView(tuple(blocks), lead)


def _equal(methods: list[dict[str, Any]]) -> tuple[str, str]:
    """Return a sentence on the tuning budget and its tone."""
    # A method whose every setting failed has no final seeds to give: its row says why.
    done = [m for m in methods if m.get("status") == "done"]
    able = [m for m in methods if m.get("status") != "incompatible"]
    odd = []
    for key, noun, group in (("n_settings", "setting", able), ("n_seeds", "seed", done)):
        counts = Counter(m.get(key) or 0 for m in group)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            names = [f"{words.title(m)} {m.get(key) or 0}" for m in group if m.get(key) != usual]
            odd.append(f"most methods have {words.plural(usual, noun)}, but {', '.join(names)}")
    if odd:
        return f"Not the same for all: {'; '.join(odd)}.", "warning"
    settings = able[0].get("n_settings") or 0 if able else 0
    if not settings:
        return "Nothing was trained yet.", "muted"
    seeds = done[0].get("n_seeds") or 0 if done else 0
    text = f"Every method got {words.plural(settings, 'setting')} and {words.plural(seeds, 'seed')}"
    return f"{text}, the control included.", "plain"


def _differed(methods: list[dict[str, Any]]) -> str:
    """Say which hyperparameters besides the learning rate were varied."""
    keys: set[str] = set()
    for method in methods:
        settings = [s.get("setting") or {} for s in method.get("settings") or []]
        names = {k for s in settings for k in s} - {"learning_rate"}
        keys |= {k for k in names if len({repr(s.get(k)) for s in settings}) > 1}
    if not keys:
        return "Between the settings of a method only the learning rate differed."
    return f"Besides the learning rate, settings differed in: {', '.join(sorted(keys))}."


def _row(method: dict[str, Any], study: dict[str, Any]) -> Row:
    tried = sorted(
        {
            rate
            for s in method.get("settings") or []
            if (rate := (s.get("setting") or {}).get("learning_rate")) is not None
        }
    )
    edge = method.get("best_setting_on_edge")
    edge_text = words.DASH if not method.get("setting") or edge is None else "yes" if edge else "no"
    is_control = method.get("method") == study.get("control")
    cells = (
        Cell(words.title(method) + (" (control)" if is_control else "")),
        Cell(_number(method.get("n_settings"))),
        Cell(", ".join(words.learning_rate(r) for r in tried) or words.DASH),
        Cell(words.setting(method.get("setting"))),
        Cell(edge_text, tone="warning" if edge else None),
        Cell(_number(study.get("steps"))),
        Cell(_number(method.get("n_seeds"))),
        Cell(_number(method.get("n_trials_diverged"))),
        Cell(_number(method.get("n_trials_failed"))),
    )
    return Row(cells, pinned=is_control)


def _number(value: int | None) -> str:
    return words.DASH if value is None else f"{value:,}"
