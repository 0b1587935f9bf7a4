"""Item by item: items on which a contender is better or worse, with both predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bakeoff.core.format import DASH, DisplayUnit, plural, score_unit
from bakeoff.report.blocks import (
    BarRow,
    Bars,
    BarSegment,
    Block,
    Cell,
    Column,
    ExampleGroup,
    ExamplePrediction,
    Examples,
    ItemExample,
    LegendEntry,
    SectionView,
    TableBlock,
    TableRow,
    Text,
)
from bakeoff.report.texts import method_title

ORDER = 72
TITLE = "Item by item"

_FIELDS = (
    ("both_right", "Both right"),
    ("only_contender", "Only contender"),
    ("only_control", "Only control"),
    ("both_wrong", "Both wrong"),
)
_WIDTH = 96.0  # percent of the plot's width that the longest bars take, both sides together


def build(report: dict[str, Any]) -> SectionView:
    """Show the counts of every contender, then some wins and losses with both predictions."""
    items = report.get("items") or {}
    contenders = [f for f in items.get("methods") or [] if f.get("better") is not None]
    if not contenders:
        return SectionView()
    titles = {str(m.get("method")): method_title(m) for m in report.get("methods") or []}
    places = {name: i for i, name in enumerate(titles)}
    contenders.sort(key=lambda f: places.get(str(f.get("method")), len(places)))
    control = str(report["study"].get("control"))
    control = titles.get(control, control)
    blocks: list[Block] = [_bars(contenders, titles, control), _table(contenders, titles, items)]
    if items.get("note"):
        blocks.append(Text(str(items["note"]), "muted"))
    unit = score_unit(report["study"])
    item_texts = {a.get("item"): a for a in items.get("asked") or []}
    blocks += [
        _example_groups(f, titles, control, item_texts, unit)
        for f in contenders
        if f.get("wins") or f.get("losses")
    ]
    return SectionView(tuple(blocks), _lead(items, contenders, control))


def _lead(items: dict[str, Any], contenders: list[dict[str, Any]], control: str) -> str:
    text = (
        f"Each contender against {control} on the "
        f"{plural(items.get('n_items') or 0, 'test item')}, "
        "by the mean score over the seeds that both have."
    )
    if any(f.get("outcomes") for f in contenders):
        text += " Right and wrong are counted over pairs of item and seed."
    if any(f.get("groups") for f in contenders):
        text += " A group of items counts by the sum of its items, and gives one example at most."
    if items.get("examples"):
        text += (
            " Below are the largest wins and losses of each contender, at most ten, with the seed "
            "where the two differ most; ties are broken by a fixed shuffle. Long texts are "
            "shortened in the middle. Examples illustrate a difference; they do not prove it."
        )
    return text


def _title(contender: dict[str, Any], titles: dict[str, str]) -> str:
    name = str(contender.get("method"))
    return titles.get(name, name)


def _bars(contenders: list[dict[str, Any]], titles: dict[str, str], control: str) -> Bars:
    """Return bars with losses to the left of the axis and wins to the right, on one scale."""
    left = max(f.get("worse") or 0 for f in contenders)
    right = max(f.get("better") or 0 for f in contenders)
    scale = _WIDTH / max(left + right, 1)
    zero = 2.0 + scale * left
    rows = []
    for f in contenders:
        worse, better = f.get("worse") or 0, f.get("better") or 0
        pieces = (
            BarSegment("worse", round(zero - scale * worse, 3), round(zero, 3)),
            BarSegment("better", round(zero, 3), round(zero + scale * better, 3)),
        )
        numbers = f"{worse:,} worse, {better:,} better"
        rows.append(BarRow(_title(f, titles), tuple(p for p in pieces if p.low < p.high), numbers))
    keys = (
        LegendEntry("worse", f"{control} is better"),
        LegendEntry("better", "the contender is better"),
    )
    label = "Items on which one is better than the other"
    return Bars(label, keys, tuple(rows), round(zero, 3))


def _table(
    contenders: list[dict[str, Any]], titles: dict[str, str], items: dict[str, Any]
) -> TableBlock:
    fields = _FIELDS if any(f.get("outcomes") for f in contenders) else ()
    counts = (("better", "Better"), ("same", "Same"), ("worse", "Worse"))
    grouped = counts if any(f.get("groups") for f in contenders) else ()
    columns = (
        Column("Method"),
        *(Column(title, True, "items") for _, title in counts),
        *(Column(title, True, "groups") for _, title in grouped),
        *(Column(title, True, "items × seeds") for _, title in fields),
        Column("Seeds", True, "compared"),
    )
    rows = [
        TableRow(
            (
                Cell(_title(f, titles)),
                *(_count(f.get(key)) for key, _ in counts),
                *(_count((f.get("groups") or {}).get(key)) for key, _ in grouped),
                *(_count((f.get("outcomes") or {}).get(key)) for key, _ in fields),
                _count(f.get("n_seeds")),
            )
        )
        for f in contenders
    ]
    return TableBlock("Wins and losses by item", columns, tuple(rows), sortable=True, sheet="items")


def _count(value: int | None) -> Cell:
    return Cell(DASH) if value is None else Cell(f"{value:,}", float(value))


def _example_groups(
    contender: dict[str, Any],
    titles: dict[str, str],
    control: str,
    item_texts: dict[Any, dict[str, Any]],
    unit: DisplayUnit,
) -> Examples:
    title = _title(contender, titles)
    seeds = contender.get("n_seeds") if contender.get("outcomes") else None
    groups = []
    for key, heading in (("wins", f"{title} is better"), ("losses", f"{control} is better")):
        examples = tuple(
            _example(
                e,
                item_texts.get(e.get("item"), {}),
                (control, title),
                lambda x: _score(x, unit, seeds),
            )
            for e in contender.get(key) or []
        )
        if examples:
            groups.append(ExampleGroup(heading, examples))
    wins, losses = len(contender.get("wins") or []), len(contender.get("losses") or [])
    caption = f"{title}: {plural(wins, 'win')} and "
    caption += plural(losses, "loss", "losses")
    return Examples(caption, tuple(groups))


def _example(
    example: dict[str, Any],
    texts: dict[str, Any],
    names: tuple[str, str],
    score: Callable[[float | None], str],
) -> ItemExample:
    seed = "" if example.get("seed") is None else f", predictions of seed {example['seed']}"
    item = example.get("item")
    return ItemExample(
        f"Item {DASH if item is None else format(item, ',')}{seed}",
        texts.get("prompt"),
        texts.get("reference"),
        ExamplePrediction(names[0], example.get("control"), score(example.get("control_score"))),
        ExamplePrediction(
            names[1], example.get("contender"), score(example.get("contender_score"))
        ),
    )


def _score(value: float | None, unit: DisplayUnit, seeds: int | None) -> str:
    """Format an item's score; for right-or-wrong scores, the number of seeds that were right."""
    if seeds and value is not None:
        right = round(value * seeds)
        return f"right with {right} of {seeds} seeds" if seeds > 1 else ("wrong", "right")[right]
    return f"mean score {unit.plain(value)} {unit.word}".rstrip()
