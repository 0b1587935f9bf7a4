"""Racing: the settings and methods stopped at each rung, the reasons, and the steps saved."""

from __future__ import annotations

from typing import Any

from bakeoff.core.format import DASH, format_learning_rate
from bakeoff.report.blocks import (
    MOST_ROWS,
    Block,
    Cell,
    Column,
    SectionView,
    TableBlock,
    TableRow,
    Text,
    table_caption,
)
from bakeoff.report.texts import method_title

ORDER = 55
TITLE = "Racing (successive halving)"

_SEED = Column("Seed", True, "replicate")
"""Added as the third column if settings raced inside replicates."""
_FOLD_FROM = 12
"""Number of decisions above which the table is folded and filterable."""

_COLUMNS = (
    Column("Method"),
    Column("Learning rate", True),
    Column("Step", True),
    Column("Validation loss", True, "nats"),
    Column("Behind control", True, "nats, best setting"),
    Column("Probability within margin", True, "at the end"),
    Column("Continues", facet=True),
    Column("Reason"),
)


def build(report: dict[str, Any]) -> SectionView:
    """List every decision with its numbers; empty if the study did not race."""
    race = report.get("race")
    if not race or not race["decisions"]:
        return SectionView()
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    blocks: list[Block] = [Text(_steps_saved(race)), Text(_stopped_methods(race, titles))]
    if text := _first_rung_text(race):
        blocks.append(Text(text))
    seeded = any(d.get("seed") is not None for d in race["decisions"])
    control = report["study"].get("control")
    caption = table_caption("All decisions", len(race["decisions"]))
    rows = tuple(_row(d, titles, control, seeded) for d in race["decisions"][:MOST_ROWS])
    folded = len(rows) > _FOLD_FROM
    columns = (*_COLUMNS[:2], _SEED, *_COLUMNS[2:]) if seeded else _COLUMNS
    table = TableBlock(caption, columns, rows, folded, filterable=folded, sheet="race")
    blocks.append(table)
    within = "Inside each replicate, settings" if seeded else "Settings"
    lead = (
        f"{within} were compared at {_steps(race['rungs'])} by their loss on the same validation "
        "items. A method is stopped entirely only if it is reliably worse than the control by "
        "more than the margin and no cheaper in any cost; the control is never stopped."
    )
    return SectionView(tuple(blocks), lead)


def _first_rung_text(race: dict[str, Any]) -> str | None:
    """Say whether the control had begun to learn at the first rung; None for older studies."""
    first = race.get("first_rung")
    if not first:
        return None
    step, fall = f"step {first['step']:,}", first.get("fall")
    lost = ""
    if fall is not None:
        change = "fallen" if fall >= 0 else "risen"
        lost = f": its loss had {change} by {100 * abs(fall):.0f} %"
    if first["ripe"]:
        return f"At {step}, the first rung, the control had begun to learn{lost}."
    return (
        f"At {step}, the first rung, the control had hardly begun to learn{lost}. The order of the "
        "settings says little there, so three went on."
    )


def _steps_saved(race: dict[str, Any]) -> str:
    trained, full = race["steps_trained"], race["steps_in_full"]
    if trained is None or full is None:
        return "The number of training steps saved by racing is unknown."
    text = f"{trained:,} training steps were run"
    if not trained or full <= trained:
        return f"{text}."
    return f"{text}; without racing it would be {full:,}, {full / trained:.1f} times as many."


def _stopped_methods(race: dict[str, Any], titles: dict[Any, str]) -> str:
    names = [titles.get(m, m) for m in race["methods_stopped"]]
    return f"Stopped entirely: {', '.join(names)}." if names else "No method was stopped entirely."


def _row(
    decision: dict[str, Any], titles: dict[Any, str], control: str | None, seeded: bool
) -> TableRow:
    numbers = decision["numbers"]
    seed = (Cell(_count(decision.get("seed"))),) if seeded else ()
    cells = (
        Cell(titles.get(decision["method"], decision["method"])),
        Cell(format_learning_rate(rate) if (rate := decision["learning_rate"]) else DASH),
        *seed,
        Cell(_count(decision["step"])),
        Cell(_number(decision["mean_loss"])),
        Cell(_number(numbers.get("difference"))),
        Cell(_number(numbers.get("p_within"))),
        Cell("yes" if decision["goes_on"] else "no"),
        Cell(decision["reason"]),
    )
    return TableRow(cells, pinned=decision["method"] == control)


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


def _steps(rungs: list[int | None]) -> str:
    return " and ".join(f"step {DASH if r is None else format(r, ',')}" for r in rungs)
