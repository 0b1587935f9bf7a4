"""Checks of whole splits: empty ones, groups that do not work as intended, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bakeoff.data.checks.context import CheckContext
from bakeoff.data.issues import MAX_SHOWN, DataIssue
from bakeoff.data.rows import Row

UNEVEN = 2.0
"""A cut split is uneven with so many times the rows that it should get, or so many times fewer."""
FEW_VALIDATION_ROWS = 10
"""With fewer, settings are chosen by chance."""


def find_empty_splits(
    splits: Mapping[str, Sequence[Row]], context: CheckContext
) -> list[DataIssue]:
    """Return a fatal issue for each split without rows."""
    hint = "give more rows to cut the splits from, or one file per split."
    if context.group is not None and context.cut:
        hint = f"give more groups: rows that share '{context.group}' stay in one split."
    return [
        DataIssue("empty-split", f"The {split} split is empty", hint, fatal=True)
        for split, rows in splits.items()
        if not rows
    ]


def check(splits: Mapping[str, Sequence[Row]], context: CheckContext) -> list[DataIssue]:
    """Return issues of the groups and sizes of the splits."""
    return [*_group_issues(splits, context), *_size_issues(splits, context)]


def _group_issues(
    splits: Mapping[str, Sequence[Row]], context: CheckContext
) -> Iterator[DataIssue]:
    group = context.group
    if group is None:
        return
    if context.cut:
        values = [str(row.get(group)) for rows in splits.values() for row in rows]
        if len(set(values)) == len(values):
            yield DataIssue(
                "group-of-one",
                f"Every row has its own '{group}', so that no rows are kept together",
                "name the column that related rows share, or remove `data.group`.",
            )
    in_train = {str(row[group]): i for i, row in enumerate(splits["train"]) if group in row}
    shared = [i for i, r in enumerate(splits["test"]) if group in r and str(r[group]) in in_train]
    if shared:
        yield DataIssue.at(
            "group-in-train-and-test",
            f"A '{group}' that train has too",
            "give no test file, so that groups are kept apart, or remove these rows.",
            "test", shared, len(splits["test"]), against="train",
            partners=tuple(in_train[str(splits["test"][i][group])] for i in shared[:MAX_SHOWN]),
        )  # fmt: skip


def _size_issues(splits: Mapping[str, Sequence[Row]], context: CheckContext) -> Iterator[DataIssue]:
    total = sum(len(splits[split]) for split in context.cut)
    for split, fraction in context.cut.items():
        share = len(splits[split]) / total
        if not context.sampled and not fraction / UNEVEN <= share <= fraction * UNEVEN:
            yield DataIssue(
                "uneven-split",
                f"The {split} split got {100 * share:.0f} % of the rows, not {100 * fraction:.0f} "
                "%: groups are few or of very different sizes",
                "a finer `data.group`, or a file for each split.",
            )
    n_train, n_validation = len(splits["train"]), len(splits["validation"])
    if n_train < context.batch_size:
        yield DataIssue(
            "train-smaller-than-batch",
            f"Train has {n_train} rows, fewer than a step takes (budget.batch_size = "
            f"{context.batch_size})",
            "more rows, or a smaller batch: rows repeat within a step.",
        )
    if n_validation < FEW_VALIDATION_ROWS:
        yield DataIssue(
            "validation-too-small",
            f"Settings are chosen on {n_validation} validation rows, which is close to chance",
            f"at least {FEW_VALIDATION_ROWS}, better hundreds.",
        )
