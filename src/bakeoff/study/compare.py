"""Compare two studies (`bakeoff compare`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeoff.analysis.compare_studies import ComparedStudy, compare_studies
from bakeoff.core.errors import UsageError
from bakeoff.study.config import flatten
from bakeoff.study.record import load_report, read_values


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Return the differences of two studies, and whether their verdicts agree; write nothing.

    Raises:
        UsageError: ``no-study``, ``same-study``.
    """
    if first.resolve() == second.resolve():
        raise UsageError(
            "same-study",
            f"Both folders are {first}.",
            "the folder of another study as the second one.",
        )
    return compare_studies(_load_study(first), _load_study(second))


def _load_study(out: Path) -> ComparedStudy:
    _, summary = load_report(out, examples=False)
    return ComparedStudy(str(out), summary, flatten(read_values(out).get("frozen") or {}))
