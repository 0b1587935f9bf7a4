"""Issues of the data and the base: what is wrong, in which rows of the user's file, and a hint.

Fatal issues are raised together as one error, the others are listed as warnings. An issue holds
positions in a split; the places in the user's file are looked up when its text is built, because
frozen rows do not carry them. Standard library only, JSON in and out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Self

from bakeoff.core.errors import PreflightError
from bakeoff.core.warning_codes import with_code

MAX_SHOWN = 5
"""Number of rows that are named; the others are counted."""
MAX_PAIRS = 2
"""Number of rows that are named together with a similar one."""


class Place(NamedTuple):
    """The place where a row was read: a file and a number from 1, in ``unit`` (line, row)."""

    file: str
    unit: str
    number: int


PlaceLookup = Callable[[str, int], Place]
"""Split and position in it (from 0) -> place in the user's file."""


@dataclass(frozen=True)
class DataIssue:
    """One kind of issue in one split.

    ``what`` is a clause without a full stop. ``rows`` are the first positions in ``split`` (from 0)
    of ``count`` affected rows out of ``of``; ``partners`` are the similar rows in ``against``. An
    issue that is not about rows has no split.
    """

    code: str
    what: str
    try_: str
    fatal: bool = False
    split: str | None = None
    rows: tuple[int, ...] = ()
    count: int = 0
    of: int = 0
    against: str | None = None
    partners: tuple[int, ...] = ()

    @classmethod
    def at(
        cls,
        code: str,
        what: str,
        try_: str,
        split: str,
        rows: Sequence[int],
        of: int,
        **more: Any,
    ) -> Self:
        """Return an issue of these rows, out of ``of``; only the first few positions are kept."""
        return cls(
            code,
            what,
            try_,
            split=split,
            rows=tuple(rows[:MAX_SHOWN]),
            count=len(rows),
            of=of,
            **more,
        )

    def cause(self, places: PlaceLookup) -> str:
        """Return one sentence with the problem and its places."""
        if self.split is None or not self.rows:
            return f"{self.what}."
        return f"{self.what} in {self.where(places)}."

    def where(self, places: PlaceLookup) -> str:
        """Return the number of affected rows, their split and the first places."""
        assert self.split is not None
        where = [places(self.split, row) for row in self.rows]
        if self.against is None:
            where_text = format_places(where, self.count)
        else:
            partners = (places(self.against, row) for row in self.partners)
            pairs = list(zip(where, partners, strict=True))[:MAX_PAIRS]
            where_text = "; ".join(
                f"{format_places([a], 1)} like {format_places([b], 1)}" for a, b in pairs
            )
            more = self.count - len(pairs)
            where_text += f" and {more:,} more" if more else ""
        rows = "row" if self.of == 1 else "rows"
        return f"{self.count:,} of {self.of:,} {rows} of {self.split}: {where_text}"

    def warning(self, places: PlaceLookup) -> str:
        """Return the sentences that list this issue as a warning."""
        return with_code(f"{self.cause(places)} {_capitalize(self.try_)}", self.code)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild an issue from ``to_json``."""
        lists = {name: tuple(value[name]) for name in ("rows", "partners")}
        return cls(**{**value, **lists})


def list_warnings(issues: Iterable[DataIssue], places: PlaceLookup) -> list[str]:
    """Return a warning for each kind of issue; the same issue in several splits is one."""
    kinds: dict[tuple[str, str, str], list[DataIssue]] = {}
    for issue in issues:
        kinds.setdefault((issue.code, issue.what, issue.try_), []).append(issue)
    texts = []
    for (code, what, try_), found in kinds.items():
        in_rows = [f for f in found if f.split is not None and f.rows]
        if len(in_rows) < 2:
            texts += [issue.warning(places) for issue in found]
            continue
        where = "; in ".join(issue.where(places) for issue in in_rows)
        texts.append(with_code(f"{what} in {where}. {_capitalize(try_)}", code))
    return texts


def as_error(issues: Iterable[DataIssue], places: PlaceLookup) -> PreflightError | None:
    """Return one error for all fatal issues, with the code of the first; None without any."""
    fatal = [f for f in issues if f.fatal]
    if not fatal:
        return None
    first, *others = fatal
    if not others:
        return PreflightError(first.code, first.cause(places), first.try_)
    causes = [first.cause(places), *(f"[{f.code}] {f.cause(places)}" for f in others)]
    hints = dict.fromkeys(f.try_ for f in fatal)
    numbered = " ".join(f"({n}) {hint}" for n, hint in enumerate(hints, 1))
    return PreflightError(first.code, "\n".join(causes), numbered if len(hints) > 1 else first.try_)


def format_places(places: Sequence[Place], count: int) -> str:
    """Return the first of ``count`` places as text: ``lines 3, 7 and 12 of rows.jsonl``."""
    files = groupby(places, key=lambda p: (p.unit, p.file))
    groups = [(unit, file, [p.number for p in same]) for (unit, file), same in files]
    if len(groups) == 1:
        unit, file, numbers = groups[0]
        return f"{format_numbers(unit, numbers, count)} of {file}"
    more = f" and {count - len(places):,} more" if count > len(places) else ""
    return ", ".join(f"{format_numbers(unit, n)} of {file}" for unit, file, n in groups) + more


def format_numbers(unit: str, numbers: Sequence[int], count: int | None = None) -> str:
    """Return ``line 3`` or ``lines 3, 7 and 12``, or the first few and the number of others."""
    total = len(numbers) if count is None else count
    shown = [str(n) for n in numbers[:MAX_SHOWN]]
    if total > len(shown):
        return f"{unit}s {', '.join(shown)} and {total - len(shown):,} more"
    if len(shown) == 1:
        return f"{unit} {shown[0]}"
    return f"{unit}s {', '.join(shown[:-1])} and {shown[-1]}"


def _capitalize(text: str) -> str:
    return text if text.startswith("`") else text[:1].upper() + text[1:]
