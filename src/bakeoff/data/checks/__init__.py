"""Checks on the rows as text, before anything is loaded: what is wrong with them, and where.

Called by ``study`` when a study is opened: rows in, faults out. ``readable`` finds what keeps rows
from being read at all, ``telling`` what makes a comparison on them say less than it seems to. What
only tokens show is found by a worker (``preflight.check``). Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bakeoff.data.checks import answers, cells, duplicates, split_sizes
from bakeoff.data.checks.context import CheckContext
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row

__all__ = ["CheckContext", "find_blocking_issues", "find_warnings"]


def find_blocking_issues(
    splits: Mapping[str, Sequence[Row]], reading: CheckContext
) -> list[DataIssue]:
    """Return what is wrong with cells: missing, empty, not text, not encodable, unprintable."""
    faults = split_sizes.find_empty_splits(splits, reading)
    for split, rows in splits.items():
        faults += cells.check(split, rows, reading)
    return faults


def find_warnings(splits: Mapping[str, Sequence[Row]], reading: CheckContext) -> list[DataIssue]:
    """Return repeats, leaks, contradictions, odd answers and odd splits of readable rows."""
    pairs = {split: [reading.pair(row) for row in rows] for split, rows in splits.items()}
    return [
        *split_sizes.check(splits, reading),
        *duplicates.check(pairs),
        *answers.check(pairs),
    ]
