"""Faults of the splits as wholes: nothing in one, groups that do not do what they are for, sizes.

One of the checks on text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bakeoff.data.checks.context import CheckContext
from bakeoff.data.issues import MAX_SHOWN, DataIssue
from bakeoff.data.rows import Row

UNEVEN = 2.0
"""A cut split with so many times the rows it was to get, or so many times fewer, is named."""
FEW_VALIDATION_ROWS = 10
"""Fewer choose settings by chance."""


def find_empty_splits(
    splits: Mapping[str, Sequence[Row]], reading: CheckContext
) -> list[DataIssue]:
    """Return a fatal fault for each split without rows."""
    hint = "give more rows to cut the splits from, or a file for each."
    if reading.group is not None and reading.cut:
        hint = f"give more groups: rows that share '{reading.group}' stay in one split."
    return [
        DataIssue("empty-split", f"The {split} split is empty", hint, fatal=True)
        for split, rows in splits.items()
        if not rows
    ]


def check(splits: Mapping[str, Sequence[Row]], reading: CheckContext) -> list[DataIssue]:
    """Return what is odd about the groups and sizes of the splits."""
    return [*_group_issues(splits, reading), *_size_issues(splits, reading)]


def _group_issues(
    splits: Mapping[str, Sequence[Row]], reading: CheckContext
) -> Iterator[DataIssue]:
    group = reading.group
    if group is None:
        return
    if reading.cut:
        values = [str(row.get(group)) for rows in splits.values() for row in rows]
        if len(set(values)) == len(values):
            yield DataIssue(
                "group-of-one",
                f"Every row has its own '{group}', so that no rows are kept together",
                "name the column that related rows share, or leave `data.group` out.",
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


def _size_issues(splits: Mapping[str, Sequence[Row]], reading: CheckContext) -> Iterator[DataIssue]:
    total = sum(len(splits[split]) for split in reading.cut)
    for split, fraction in reading.cut.items():
        share = len(splits[split]) / total
        if not reading.sampled and not fraction / UNEVEN <= share <= fraction * UNEVEN:
            yield DataIssue(
                "uneven-split",
                f"The {split} split got {100 * share:.0f} % of the rows, not {100 * fraction:.0f} "
                "%: groups are few or of very different sizes",
                "a finer `data.group`, or a file for each split.",
            )
    n_train, n_validation = len(splits["train"]), len(splits["validation"])
    if n_train < reading.batch_size:
        yield DataIssue(
            "train-smaller-than-batch",
            f"Train has {n_train} rows, fewer than a step takes (budget.batch_size = "
            f"{reading.batch_size})",
            "more rows, or a smaller batch: as it is, rows repeat inside a step.",
        )
    if n_validation < FEW_VALIDATION_ROWS:
        yield DataIssue(
            "validation-too-small",
            f"Settings are chosen on {n_validation} validation rows, little more than by chance",
            f"at least {FEW_VALIDATION_ROWS}, better hundreds.",
        )
