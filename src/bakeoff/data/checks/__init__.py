"""Checks on the rows as text, before a model is loaded.

``find_blocking_issues`` finds unreadable rows, ``find_warnings`` anything that makes a comparison
on them less meaningful. A worker checks the tokens later. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bakeoff.data.checks import answers, cells, duplicates, split_sizes
from bakeoff.data.checks.context import CheckContext
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row

__all__ = ["CheckContext", "find_blocking_issues", "find_warnings"]


def find_blocking_issues(
    splits: Mapping[str, Sequence[Row]], context: CheckContext
) -> list[DataIssue]:
    """Return issues of splits and cells: empty, missing, not text, not encodable, unprintable."""
    issues = split_sizes.find_empty_splits(splits, context)
    for split, rows in splits.items():
        issues += cells.check(split, rows, context)
    return issues


def find_warnings(splits: Mapping[str, Sequence[Row]], context: CheckContext) -> list[DataIssue]:
    """Return duplicates, leaks, contradictions, unusual answers and splits of readable rows."""
    pairs = {split: [context.prompt_answer(row) for row in rows] for split, rows in splits.items()}
    return [
        *split_sizes.check(splits, context),
        *duplicates.check(pairs),
        *answers.check(pairs),
    ]
