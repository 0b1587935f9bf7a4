"""Format numbers for people: scores in points, differences with their interval, costs, times.

A value that is missing is written as a dash; no stand-in number is ever shown. Fractions are read
in points (times 100), every other metric in its own unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bakeoff.core.record import StudyRecord

DASH = "–"
MINUS = "\N{MINUS SIGN}"
MIB = 2**20


@dataclass(frozen=True)
class DisplayUnit:
    """The unit in which a raw value is read: ``value * factor``, then ``word``."""

    factor: float
    word: str
    decimals: int | None = None

    def plain(self, value: float | None) -> str:
        """Format the value without its unit."""
        if value is None:
            return DASH
        scaled = value * self.factor
        if self.decimals is None:
            return format_significant(scaled)
        return _typographic_minus(f"{scaled:,.{self.decimals}f}")

    def signed(self, value: float | None) -> str:
        """Format the value as a difference, with its sign."""
        text = self.plain(value)
        is_zero = value is None or not text.strip("0.,")
        return text if is_zero or text.startswith(MINUS) else f"+{text}"

    def span(self, interval: dict[str, Any] | None, *, signed: bool = False) -> str:
        """Format ``low to high``."""
        low, high = (interval or {}).get("low"), (interval or {}).get("high")
        if low is None or high is None:
            return DASH
        write = self.signed if signed else self.plain
        return f"{write(low)} to {write(high)}"

    def with_interval(self, value: dict[str, Any] | None, *, signed: bool = False) -> str:
        """Format ``estimate (low to high)``."""
        if not value or value.get("estimate") is None:
            return DASH
        write = self.signed if signed else self.plain
        span = self.span(value, signed=signed)
        return write(value["estimate"]) + ("" if span == DASH else f" ({span})")


def score_unit(study: dict[str, Any]) -> DisplayUnit:
    """Return the unit of the study's metric: fractions are read as points."""
    if study.get("unit") == "fraction":
        return DisplayUnit(100.0, "points", 1)
    return DisplayUnit(1.0, str(study.get("unit") or ""))


def format_significant(value: float | None, digits: int = 3) -> str:
    """Format a number with about three significant digits and thousands separated."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 10 ** (-digits):
        return _typographic_minus(f"{value:.{digits - 1}e}")
    whole = len(str(int(abs(value))))
    decimals = max(digits - whole, 0) if abs(value) >= 1 else digits
    return _typographic_minus(f"{value:,.{decimals}f}")


def format_count(value: float | None) -> str:
    """Format a count of things: 912, 73.7 k, 1.2 M, 3.4 G."""
    if value is None:
        return DASH
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return _typographic_minus(f"{value / size:.1f} {letter}")
    return _typographic_minus(f"{value:,.0f}")


def format_bytes(value: float | None) -> str:
    """Format bytes in MiB; below a tenth of that in KiB, from ten thousand on in GiB."""
    if value is None:
        return DASH
    mib = value / MIB
    if mib >= 10_000:
        return f"{mib / 1024:,.1f} GiB"
    if abs(mib) < 0.1:
        return _typographic_minus(f"{value / 1024:.1f} KiB")
    return _typographic_minus(f"{mib:,.0f} MiB" if abs(mib) >= 100 else f"{mib:.1f} MiB")


def format_milliseconds(value: float | None) -> str:
    """Format milliseconds with three significant digits."""
    return DASH if value is None else f"{format_significant(value)} ms"


def format_seconds(value: float | None) -> str:
    """Format a measured time: 4.2 s, 3 min 12 s, 2 h 05 min."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_duration(seconds: float) -> str:
    """Format an approximate time, as progress lines show it: 42 s, 12 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def format_learning_rate(value: float | None) -> str:
    """Format a learning rate: 1e-4, 3.2e-4."""
    if value is None:
        return DASH
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def format_p_value(value: float | None) -> str:
    """Format a p value, never as zero."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_percent(value: float | None) -> str:
    """Format a probability in percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def format_saving(share: float) -> str:
    """Format a saved share in percent."""
    # never "100 % fewer": that would say none are left
    return f"{min(100 * share, 99):.0f} %" if share < 0.995 else "over 99 %"


def format_setting(values: Mapping[str, Any] | None) -> str:
    """Format a hyperparameter setting briefly: ``lr 1e-3, r 8``."""
    values = dict(values or {})
    rate = values.pop("learning_rate", None)
    parts = [] if rate is None else [f"lr {format_learning_rate(rate)}"]
    parts += [f"{k} {v}" for k, v in values.items()]
    return ", ".join(parts) or DASH


def format_setting_in_words(values: Mapping[str, Any]) -> str:
    """Format a hyperparameter setting for a sentence: ``learning rate 0.001, r 8``."""
    rest = [f"{name} {value}" for name, value in values.items() if name != "learning_rate"]
    return ", ".join([f"learning rate {values['learning_rate']:g}", *rest])


def format_lane_costs(costs: Iterable[tuple[str, int | None, float | None]]) -> str | None:
    """Describe what lanes cost from ``(title, lanes, ratio)`` of each method; None if unknown.

    ``16 lanes take 3.8 times a single trial's step with LoRA, 12 times with OFT``.
    """
    by_lanes: dict[int, list[tuple[str, float]]] = {}
    for title, lanes, ratio in costs:
        if lanes is not None and ratio is not None and lanes > 1:
            by_lanes.setdefault(lanes, []).append((title, ratio))
    parts = []
    for lanes, ((title, ratio), *others) in by_lanes.items():
        first = f"{lanes} lanes take {ratio:.2g} times a single trial's step with {title}"
        parts.append(", ".join([first, *(f"{r:.2g} times with {other}" for other, r in others)]))
    return "; ".join(parts) or None


def plural(n: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: 1 seed, 3 seeds."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def format_status(value: str | None) -> str:
    """Format a status as words."""
    return str(value or "unknown").replace("_", " ")


def format_cost(name: str, value: float) -> str:
    """Format a cost for a sentence: memory and size in MiB or KiB, speed in ms a step."""
    if name == "speed":
        return f"{value:.3g} ms"
    if value < MIB / 10:
        return f"{value / 1024:,.1f} KiB"
    return f"{value / MIB:,.1f} MiB" if value < 100 * MIB else f"{value / MIB:,.0f} MiB"


def format_number(record: StudyRecord, value: float) -> str:
    """Format a value of the study's metric without its unit."""
    text = f"{100 * value:.1f}" if record.metric.unit == "fraction" else f"{value:.3g}"
    return _typographic_minus(text)


def format_value(record: StudyRecord, value: float) -> str:
    """Format a value of the study's metric with its unit."""
    unit = "points" if record.metric.unit == "fraction" else record.metric.unit
    return f"{format_number(record, value)} {unit}".rstrip()


def format_difference(record: StudyRecord, value: float) -> str:
    """Format a difference in the metric's unit, with its sign."""
    text = format_value(record, value)
    is_zero = not format_number(record, value).strip("0.")
    return text if is_zero or text.startswith(MINUS) else f"+{text}"


def format_interval(record: StudyRecord, value: dict[str, Any]) -> str:
    """Format the interval of a difference, with signs."""
    if value["low"] is None or value["high"] is None:
        return "no interval yet"
    low, high = (format_number(record, value[side]) for side in ("low", "high"))
    plus = ["+" if not n.startswith(MINUS) and n.strip("0.") else "" for n in (low, high)]
    return f"95 % interval {plus[0]}{low} to {plus[1]}{high}"


def format_cell(value: float | None, form: str = "g", scale: float = 1.0) -> str:
    """Format a number for a table of the terminal; ``-`` where it is missing."""
    return "-" if value is None else format(value * scale, form)


def format_integer(value: int | None) -> str:
    """Format a whole number for a table of the terminal; ``-`` where it is missing."""
    return "-" if value is None else f"{value:,}"


def _typographic_minus(text: str) -> str:
    # "-0.0" is a rounding of nearly nothing, not a direction.
    if text.startswith("-") and not text.strip("-0.,"):
        return text[1:]
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
