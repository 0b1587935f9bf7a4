"""Numbers as people write them: points, MiB, ms, 1.2 M.

Used by every section. Each function takes None and gives a dash: absence stays visible, and no
stand-in number is ever shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DASH = "–"
MINUS = "\N{MINUS SIGN}"
MIB = 2**20


@dataclass(frozen=True)
class Unit:
    """How a raw value becomes what people read: ``value * factor``, then ``word``."""

    factor: float
    word: str
    decimals: int | None = None

    def plain(self, value: float | None) -> str:
        """Write the value without its word."""
        if value is None:
            return DASH
        scaled = value * self.factor
        if self.decimals is None:
            return significant(scaled)
        return _minus(f"{scaled:,.{self.decimals}f}")

    def signed(self, value: float | None) -> str:
        """Write the value with its sign, as a difference is read."""
        text = self.plain(value)
        nothing = value is None or not text.strip("0.,")
        return text if nothing or text.startswith(MINUS) else f"+{text}"

    def span(self, interval: dict[str, Any] | None, *, signed: bool = False) -> str:
        """Write ``low to high``."""
        low, high = (interval or {}).get("low"), (interval or {}).get("high")
        if low is None or high is None:
            return DASH
        write = self.signed if signed else self.plain
        return f"{write(low)} to {write(high)}"

    def with_interval(self, value: dict[str, Any] | None, *, signed: bool = False) -> str:
        """Write ``estimate (low to high)``."""
        if not value or value.get("estimate") is None:
            return DASH
        write = self.signed if signed else self.plain
        span = self.span(value, signed=signed)
        return write(value["estimate"]) + ("" if span == DASH else f" ({span})")


def score_unit(study: dict[str, Any]) -> Unit:
    """Return the unit that the study's metric is read in: fractions are read as points."""
    if study.get("unit") == "fraction":
        return Unit(100.0, "points", 1)
    return Unit(1.0, str(study.get("unit") or ""))


def lower_is_better(study: dict[str, Any]) -> bool:
    """Tell whether a smaller value of the study's metric is the better one."""
    return study.get("better") == "lower"


def significant(value: float | None, digits: int = 3) -> str:
    """Write a number with about three significant digits and thousands separated."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 10 ** (-digits):
        return _minus(f"{value:.{digits - 1}e}")
    whole = len(str(int(abs(value))))
    decimals = max(digits - whole, 0) if abs(value) >= 1 else digits
    return _minus(f"{value:,.{decimals}f}")


def count(value: float | None) -> str:
    """Write a count of things: 912, 73.7 k, 1.2 M, 3.4 G."""
    if value is None:
        return DASH
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return _minus(f"{value / size:.1f} {letter}")
    return _minus(f"{value:,.0f}")


def size(value: float | None) -> str:
    """Write bytes in MiB; below a tenth of that in KiB, from ten thousand on in GiB."""
    if value is None:
        return DASH
    mib = value / MIB
    if mib >= 10_000:
        return f"{mib / 1024:,.1f} GiB"
    if abs(mib) < 0.1:
        return _minus(f"{value / 1024:.1f} KiB")
    return _minus(f"{mib:,.0f} MiB" if abs(mib) >= 100 else f"{mib:.1f} MiB")


def milliseconds(value: float | None) -> str:
    """Write milliseconds with three significant digits."""
    return DASH if value is None else f"{significant(value)} ms"


def seconds(value: float | None) -> str:
    """Write a stretch of time: 4.2 s, 3 min 12 s, 2 h 05 min."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def learning_rate(value: float | None) -> str:
    """Write a learning rate: 1e-4, 3.2e-4."""
    if value is None:
        return DASH
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def p_value(value: float | None) -> str:
    """Write a p value, never as zero."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Write a probability in percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def setting(value: dict[str, Any] | None) -> str:
    """Write a setting: the learning rate first, then what else it says."""
    value = dict(value or {})
    rate = value.pop("learning_rate", None)
    parts = [] if rate is None else [f"lr {learning_rate(rate)}"]
    parts += [f"{k} {v}" for k, v in value.items()]
    return ", ".join(parts) or DASH


def plural(n: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun: 1 seed, 3 seeds."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def title(method: dict[str, Any]) -> str:
    """Return how people write a method's name."""
    return str(method.get("title") or method.get("method") or "?")


def status(value: str | None) -> str:
    """Write a status as words."""
    return str(value or "unknown").replace("_", " ")


def try_again(report: dict[str, Any], folder: str = "FOLDER") -> str | None:
    """Say by which command runs that failed are tried again; None where none is.

    Once a method has a score on test settings are chosen, and failed runs of the search stay.
    """
    failed = [
        f for f in report.get("failures") or [] if f.get("status") in ("failed", "out_of_memory")
    ]
    if not failed or report.get("imported"):
        return None
    read = any(m.get("score") for m in report.get("methods") or [])
    left = sum(read and f.get("phase") == "search" for f in failed)
    said = []
    if left < len(failed):
        count = plural(len(failed) - left, "run")
        said.append(f"{count} failed. To try again: `bakeoff run {folder} --retry`.")
    if left:
        said.append(
            f"{plural(left, 'run')} of the search failed, and settings were chosen without. To "
            f"begin anew: `bakeoff run {folder} --fork NEW`."
        )
    return " ".join(said)


def handed_out(report: dict[str, Any], folder: str = "") -> str | None:
    """Say where the recommended method's weights lie, and that they are what was trained.

    ``folder`` is the study's, with a slash; None where they were not loaded again, or are not the
    same: a warning says that.
    """
    wanted = (report.get("recommendation") or {}).get("method")
    row: dict[str, Any] = next(
        (m for m in report.get("methods") or [] if m.get("method") == wanted), {}
    )
    found = row.get("artifact")
    if not found or not found.get("same"):
        return None
    return (
        f"{title(row)}'s weights: {folder}{found['path']} (seed {found['seed']}, the best on "
        f"validation). Loaded again without bakeoff: validation loss "
        f"{significant(found['reloaded_loss'])}, at the end of training "
        f"{significant(found['loss'])}."
    )


def _minus(text: str) -> str:
    # "-0.0" is a rounding of nearly nothing, not a direction.
    if text.startswith("-") and not text.strip("-0.,"):
        return text[1:]
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
