"""Numbers in sentences: scores in points, differences with their interval, costs in people's units.

Used by the recommendation. Fractions are read as points (times 100), every other unit as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.core.record import StudyRecord
from bakeoff.core.trial import LEARNING_RATE

Row = dict[str, Any]
MINUS = "\N{MINUS SIGN}"
MIB = 2**20
# Below this the bootstrap over items says little.
FEWEST_ITEMS = 30


def few_items(n_test: int) -> list[str]:
    """Say it where a test set has too few items for any verdict."""
    if n_test >= FEWEST_ITEMS:
        return []
    return [f"The test set has {n_test} items; below {FEWEST_ITEMS} its verdicts mean little."]


def gain(record: StudyRecord, control: Row, best: Row, n_compared: int) -> str:
    """Say how much better the best contender is, and whether that is past the margin."""
    difference = best["difference"]
    higher = record.metric.better == "higher"
    least = difference["low"] if higher else -difference["high"]
    proven = least >= record.margin
    text = (
        f"{signed(record, difference['estimate'])} against {control['title']}"
        f"{direction(record)} ({interval(record, difference)}, adjusted p "
        f"{p_value(difference['p_adjusted'])}, {count(n_compared, 'contender')}, "
        f"{evidence_size(record, control, best)})"
    )
    margin = value_of(record, record.margin)
    return text + ("" if proven else f"; better beyond chance, but maybe by less than {margin}")


def direction(record: StudyRecord) -> str:
    """Say it where a lower score is the better one."""
    return "" if record.metric.better == "higher" else " (lower is better)"


def evidence_size(record: StudyRecord, control: Row, row: Row) -> str:
    """Write the seed and item counts that the evidence rests on."""
    seeds = min(control["n_seeds"], row["n_seeds"])
    text = count(seeds, "seed") + (", seed noise unknown" if seeds == 1 else "")
    items = record.n_items.get("test")
    return text if items is None else f"{text}, {count(items, 'item')}"


def setting(values: Mapping[str, Any]) -> str:
    """Write a setting: its learning rate first, then what else differs."""
    rest = [f"{name} {value}" for name, value in values.items() if name != LEARNING_RATE]
    return ", ".join([f"learning rate {values[LEARNING_RATE]:g}", *rest])


def count(n: int, word: str) -> str:
    """Write a number with its noun: 1 seed, 3 seeds."""
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def interval(record: StudyRecord, value: dict[str, float]) -> str:
    """Write the interval of a difference, with signs."""
    low, high = (number(record, value[side]) for side in ("low", "high"))
    plus = ["+" if not n.startswith(MINUS) and n.strip("0.") else "" for n in (low, high)]
    return f"95 % interval {plus[0]}{low} to {plus[1]}{high}"


def signed(record: StudyRecord, value: float) -> str:
    """Write a difference in the metric's unit, with its sign."""
    text = value_of(record, value)
    zero = not number(record, value).strip("0.")
    return text if zero or text.startswith(MINUS) else f"+{text}"


def value_of(record: StudyRecord, value: float) -> str:
    """Write a value in the metric's unit."""
    unit = "points" if record.metric.unit == "fraction" else record.metric.unit
    return f"{number(record, value)} {unit}".rstrip()


def number(record: StudyRecord, value: float) -> str:
    """Write a value without its unit."""
    text = f"{100 * value:.1f}" if record.metric.unit == "fraction" else f"{value:.3g}"
    if not text.strip("-0."):  # "-0.0" is a rounding of nearly nothing, not a direction
        return text.lstrip("-")
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def percent(share: float) -> str:
    """Write a share in percent."""
    # never "100 % fewer": that would say none are left
    return f"{min(100 * share, 99):.0f} %" if share < 0.995 else "over 99 %"


def p_value(value: float) -> str:
    """Write a p value, never as zero."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def against(record: StudyRecord, control: Row, row: Row) -> str:
    """Write a contender's difference to the control with its interval and what it rests on."""
    difference = row["difference"]
    return (
        f"{signed(record, difference['estimate'])}{direction(record)}, "
        f"{interval(record, difference)}, {evidence_size(record, control, row)}"
    )


def amount(name: str, value: float) -> str:
    """Write a cost as people read it: memory and size in MiB or KiB, speed in ms a step."""
    if name == "speed":
        return f"{value:.3g} ms"
    if value < MIB / 10:
        return f"{value / 1024:,.1f} KiB"
    return f"{value / MIB:,.1f} MiB" if value < 100 * MIB else f"{value / MIB:,.0f} MiB"
