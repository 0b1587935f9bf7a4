"""Compare two studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeoff.analysis.compare_studies import Side, contrast
from bakeoff.core.errors import UsageError
from bakeoff.study.config import flatten
from bakeoff.study.record import read_values, summarised


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
    return contrast(_side(first), _side(second))


def _side(out: Path) -> Side:
    _, summary = summarised(out, examples=False)
    return Side(str(out), summary, flatten(read_values(out).get("frozen") or {}))
