"""The recommendation: one honest sentence with its evidence.

Stands last but one in analysis: finished method rows in, the method and the sentence out. Fractions
are read as points (times 100), every other unit as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bakeoff.analysis.accelerators import has_more
from bakeoff.analysis.compare import ALPHA, Verdict
from bakeoff.results import StudyRecord

Row = dict[str, Any]
MINUS = "\N{MINUS SIGN}"
# Named in words when an equivalent method needs this share less of them, or less still.
WORTH_NAMING = 0.1


@dataclass(frozen=True)
class Recommendation:
    """The method to take, None while the evidence names none, and why."""

    method: str | None
    sentence: str


def recommend(record: StudyRecord, rows: Sequence[Row], *, complete: bool) -> Recommendation:
    """Recommend the best of the contenders that are better, else the control."""
    control = next((r for r in rows if r["method"] == record.control), None)
    if control is None or control["score"] is None:
        return _without_control(record, rows, control, complete)
    compared = [r for r in rows if r["difference"] is not None]
    better = [r for r in compared if r["verdict"] == Verdict.BETTER]
    if better:
        best = _best(record, better)
        sentence = f"Use {best['title']}: {_gain(record, control, best, len(compared))}."
        method = best["method"]
    else:
        sentence = f"Keep {control['title']}: {_no_gain(record, control, compared)}."
        sentence += _cheaper(control, compared)
        method = record.control
    return Recommendation(method, sentence + _open(rows, complete))


def _without_control(
    record: StudyRecord, rows: Sequence[Row], control: Row | None, complete: bool
) -> Recommendation:
    """Say why there is no verdict: nothing can be compared without the control's scores."""
    name = control["title"] if control else record.titles.get(record.control, record.control)
    if not complete:
        done = sum(result is not None for _, result in record.trials)
        return Recommendation(
            None,
            f"No recommendation yet: {name}, the control, has no test score "
            f"({done} of {len(record.trials)} planned trials finished).",
        )
    why = f" ({_words(control)})" if control else ""
    scored = [r for r in rows if r["score"] is not None]
    sentence = f"No recommendation: {name}, the control, has no test score{why}"
    if scored:
        best = _best(record, scored)
        level = _value(record, best["score"]["estimate"])
        sentence += f"; the best score is that of {best['title']}, {level}, compared with nothing"
    return Recommendation(None, sentence + ".")


def _gain(record: StudyRecord, control: Row, best: Row, n_compared: int) -> str:
    """Say how much better the best contender is, and whether that is past the margin."""
    difference = best["difference"]
    higher = record.metric.better == "higher"
    least = difference["low"] if higher else -difference["high"]
    proven = least >= record.margin
    text = (
        f"{_signed(record, difference['estimate'])} against {control['title']}"
        f"{_direction(record)} ({_interval(record, difference)}, adjusted p "
        f"{_p(difference['p_adjusted'])}, {_count(n_compared, 'contender')}, "
        f"{_size(record, control, best)})"
    )
    margin = _value(record, record.margin)
    return text + ("" if proven else f"; better beyond chance, but maybe by less than {margin}")


def _no_gain(record: StudyRecord, control: Row, compared: Sequence[Row]) -> str:
    """Say that nothing beats the control, with the contender that comes nearest."""
    if not compared:
        score = control["score"]
        return (
            f"no contender has a test score to compare ({control['title']}: "
            f"{_value(record, score['estimate'])}, {_size(record, control, control)})"
        )
    best = _best(record, compared)
    lead = "no contender is better by more than chance"
    if all(r["verdict"] == Verdict.WORSE for r in compared):
        lead = "every contender is worse by more than chance"
    elif any(_beyond_chance(record, r) for r in compared):
        # better beyond chance yet equivalent: the gain is real, and smaller than the user cares for
        lead = f"no contender is better by {_value(record, record.margin)} or more"
    difference = best["difference"]
    return (
        f"{lead} (best: {best['title']} {_signed(record, difference['estimate'])}"
        f"{_direction(record)}, {_interval(record, difference)}, {_size(record, control, best)})"
    )


def _beyond_chance(record: StudyRecord, row: Row) -> bool:
    sign = 1 if record.metric.better == "higher" else -1
    difference = row["difference"]
    return bool(difference["p_adjusted"] < ALPHA and sign * difference["estimate"] > 0)


def _cheaper(control: Row, compared: Sequence[Row]) -> str:
    """Name the equivalent contenders that need clearly less memory or fewer parameters."""
    named = []
    for row in compared:
        if row["verdict"] != Verdict.EQUIVALENT:
            continue
        savings = [
            f"{_percent(saving)} {word}"
            for key, word in (
                ("train_peak_bytes", "less training memory"),
                ("trainable_parameters", "fewer trained parameters"),
            )
            if (saving := _saving(control, row, key)) is not None
        ]
        if savings:
            named.append(f"{row['title']} ({' and '.join(savings)})")
    if not named:
        return ""
    return f" Equivalent within the margin and cheaper: {', '.join(named)}."


def _saving(control: Row, row: Row, key: str) -> float | None:
    """Return the share of a cost that a contender saves, None when it is not worth naming."""
    own, other = row["cost"][key], control["cost"][key]
    kinds_differ = row["cost"]["memory_kind"] != control["cost"]["memory_kind"]
    # what an accelerator saves that the control had to do without is no merit of the method
    unlike = kinds_differ or has_more(row, control)
    if own is None or not other or (key == "train_peak_bytes" and unlike):
        return None
    saving = 1 - own / other
    return saving if saving >= WORTH_NAMING else None


def _open(rows: Sequence[Row], complete: bool) -> str:
    """Say that a study is unfinished, and how far it got."""
    if complete:
        return ""
    scored = sum(r["score"] is not None for r in rows)
    return f" The study is not finished: {scored} of {_count(len(rows), 'method')} scored so far."


def _best(record: StudyRecord, rows: Sequence[Row]) -> Row:
    sign = 1 if record.metric.better == "higher" else -1
    return max(rows, key=lambda r: sign * r["score"]["estimate"])


def _words(row: Row) -> str:
    status = str(row["status"]).replace("_", " ")
    return f"{status}: {row['reason']}" if row["reason"] else status


def _direction(record: StudyRecord) -> str:
    return "" if record.metric.better == "higher" else " (lower is better)"


def _size(record: StudyRecord, control: Row, row: Row) -> str:
    """Write the seed and item counts that the evidence rests on."""
    seeds = min(control["n_seeds"], row["n_seeds"])
    text = _count(seeds, "seed") + (", seed noise unknown" if seeds == 1 else "")
    items = record.n_items.get("test")
    return text if items is None else f"{text}, {_count(items, 'item')}"


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _interval(record: StudyRecord, value: dict[str, float]) -> str:
    low, high = (_number(record, value[side]) for side in ("low", "high"))
    plus = ["+" if not n.startswith(MINUS) and n.strip("0.") else "" for n in (low, high)]
    return f"95 % interval {plus[0]}{low} to {plus[1]}{high}"


def _signed(record: StudyRecord, value: float) -> str:
    text = _value(record, value)
    zero = not _number(record, value).strip("0.")
    return text if zero or text.startswith(MINUS) else f"+{text}"


def _value(record: StudyRecord, value: float) -> str:
    unit = "points" if record.metric.unit == "fraction" else record.metric.unit
    return f"{_number(record, value)} {unit}".rstrip()


def _number(record: StudyRecord, value: float) -> str:
    text = f"{100 * value:.1f}" if record.metric.unit == "fraction" else f"{value:.3g}"
    if not text.strip("-0."):  # "-0.0" is a rounding of nearly nothing, not a direction
        return text.lstrip("-")
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def _percent(share: float) -> str:
    # never "100 % fewer": that would say none are left
    return f"{min(100 * share, 99):.0f} %" if share < 0.995 else "over 99 %"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
