"""Compare two studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeoff.analysis.compare_studies import ComparedStudy, compare_studies
from bakeoff.core.errors import UsageError
from bakeoff.study.config import flatten
from bakeoff.study.record import load_report, read_values


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Say what differs between two studies, and whether their verdicts agree; writes nothing.

    Raises:
        UsageError: ``no-study``, ``same-study``.
    """
    if first.resolve() == second.resolve():
        raise UsageError(
            "same-study",
            f"Both folders are {first}: a study does not differ from itself.",
            "another study's folder as the second one.",
        )
    return compare_studies(_load_side(first), _load_side(second))


def _load_side(out: Path) -> ComparedStudy:
    _, summary = load_report(out, examples=False)
    return ComparedStudy(str(out), summary, flatten(read_values(out).get("frozen") or {}))
