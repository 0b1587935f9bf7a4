"""Phrases that state the evidence for a verdict: its difference, interval, seeds and items."""

from __future__ import annotations

from typing import Any

from bakeoff.core.format import (
    format_difference,
    format_interval,
    format_p_value,
    format_value,
    plural,
)
from bakeoff.core.record import StudyRecord
from bakeoff.core.warning_codes import with_code

Row = dict[str, Any]
# Below this the bootstrap over items says little.
FEWEST_ITEMS = 30


def small_test_set_warnings(n_test: int) -> list[str]:
    """Warn of a test set with too few items for any verdict."""
    if n_test >= FEWEST_ITEMS:
        return []
    text = f"The test set has {n_test} items; below {FEWEST_ITEMS} its verdicts mean little."
    return [with_code(text, "test-too-small")]


def describe_gain(record: StudyRecord, control: Row, best: Row, n_compared: int) -> str:
    """Describe how much better the best contender is, and whether that exceeds the margin."""
    difference = best["difference"]
    higher = record.metric.better == "higher"
    least = difference["low"] if higher else -difference["high"]
    proven = least >= record.margin
    text = (
        f"{format_difference(record, difference['estimate'])} against {control['title']}"
        f"{direction_note(record)} ({format_interval(record, difference)}, adjusted p "
        f"{format_p_value(difference['p_adjusted'])}, {plural(n_compared, 'contender')}, "
        f"{describe_sample(record, control, best)})"
    )
    margin = format_value(record, record.margin)
    return text + ("" if proven else f"; better beyond chance, but maybe by less than {margin}")


def describe_difference(record: StudyRecord, control: Row, row: Row) -> str:
    """Describe a contender's difference to the control with its interval and sample size."""
    difference = row["difference"]
    return (
        f"{format_difference(record, difference['estimate'])}{direction_note(record)}, "
        f"{format_interval(record, difference)}, {describe_sample(record, control, row)}"
    )


def describe_sample(record: StudyRecord, control: Row, row: Row) -> str:
    """Describe how many seeds and test items the evidence rests on."""
    seeds = min(control["n_seeds"], row["n_seeds"])
    noun = "seed" if record.rounds is None else "replicate"
    text = plural(seeds, noun) + (", seed noise unknown" if seeds == 1 else "")
    items = record.n_items.get("test")
    return text if items is None else f"{text}, {plural(items, 'item')}"


def direction_note(record: StudyRecord) -> str:
    """Return a note where a lower score is the better one, else an empty text."""
    return "" if record.metric.better == "higher" else " (lower is better)"
