"""Groups of test items: items with the same group column, or with near-duplicate prompts.

Items of one group tend to be right or wrong together, so the verdict's error is summed over groups
(``analysis.group_variance``). Groups are part of the frozen study, but of no trial.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bakeoff.analysis.group_variance import IntArray, group_df
from bakeoff.data.checks.near_duplicates import MAX_COMPARISONS, cluster_near_duplicates
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.study.config.inputs import NEAR_DUPLICATES, NO_GROUPS, DataSpec

FEW_GROUPS = 10
"""With fewer groups intervals are wide, and false verdicts reach 5 to 8 % where sizes differ."""
FEW_DEGREES = 5.0
"""The same with fewer degrees of freedom: a few groups have most of the items."""


class ItemGroups(NamedTuple):
    """The group of each test item, numbered from 0 in the order of the items, and what it is."""

    numbers: tuple[int, ...]
    source: str

    @property
    def array(self) -> IntArray:
        """The numbers as an array, ``[items]``."""
        return np.array(self.numbers, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the study's record."""
        return {"source": self.source, "of_items": list(self.numbers)}

    def frozen_value(self) -> dict[str, str]:
        """Return what must stay the same in later runs of the study."""
        text = json.dumps(self.numbers).encode()
        return {"source": self.source, "sha256": hashlib.sha256(text).hexdigest()}


def find_item_groups(
    data: DataSpec, rows: Sequence[Row], prompt_of: Callable[[Row], str]
) -> tuple[ItemGroups | None, list[DataIssue]]:
    """Return the groups of the test items and issues to warn about.

    There are none (None) if the study asks for none, every item has its own, or all have the same.
    """
    numbers, sources, issues = list(range(len(rows))), [], list[DataIssue]()
    if data.group is not None and data.item_groups != NO_GROUPS:
        by_column, issues = _groups_by_column(rows, data.group)
        if by_column is not None:
            numbers = by_column
            sources.append(f"column '{data.group}'")
    if data.item_groups == NEAR_DUPLICATES:
        clusters, complete = cluster_near_duplicates([prompt_of(row) for row in rows])
        numbers = _join(numbers, clusters)
        sources.append("near-duplicate prompts")
        issues += [] if complete else [_cut_short()]
    n_groups = len(set(numbers))
    if n_groups == 1 and len(rows) > 1:
        return None, [*issues, _one_group(" and ".join(sources))]
    if n_groups == len(numbers):
        return None, issues
    groups = ItemGroups(tuple(_renumber(numbers)), " and ".join(sources))
    return groups, [*issues, *_few_groups(groups)]


def _groups_by_column(rows: Sequence[Row], column: str) -> tuple[list[int] | None, list[DataIssue]]:
    """Return each row's group by a column, None if no row has it, and issues."""
    values = [row.get(column) for row in rows]
    lacking = [i for i, value in enumerate(values) if value is None or value == ""]
    if rows and len(lacking) == len(rows):
        issue = DataIssue(
            "no-test-groups",
            f"Test has no column '{column}' (data.group): its items count as independent",
            "add the column if several test rows come from one source; else intervals are too "
            "narrow.",
        )
        return None, [issue]
    keys: list[object] = [str(value) for value in values]
    for i in lacking:  # a group of its own: what is not known is not the same
        keys[i] = i
    if not lacking:
        return _renumber(keys), []
    issue = DataIssue.at(
        "test-group-missing",
        f"No '{column}' (data.group), so that the item counts as independent of all others,",
        "fill the column.",
        "test",
        lacking,
        len(rows),
    )
    return _renumber(keys), [issue]


def _renumber(keys: Sequence[object]) -> list[int]:
    """Return the number of each key, from 0 in the order of their first appearance."""
    first: dict[object, int] = {}
    return [first.setdefault(key, len(first)) for key in keys]


def _join(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return groups in which items are together that are so in either of two groupings."""
    left, right = _renumber(one), _renumber(other)
    n_left, n_right = max(left, default=-1) + 1, max(right, default=-1) + 1
    # groups are nodes; an item connects its two
    edges = (np.ones(len(left)), (left, [n_left + r for r in right]))
    size = n_left + n_right
    components = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1]
    return [int(components[i]) for i in left]


def _few_groups(groups: ItemGroups) -> list[DataIssue]:
    """Return an issue if the groups are few, or a few of them have most of the items."""
    sizes, n_items = Counter(groups.numbers), len(groups.numbers)
    df = group_df(groups.array, n_items)
    if len(sizes) >= FEW_GROUPS and df >= FEW_DEGREES:
        return []
    worth = df + 1  # equal groups have one degree of freedom less than groups
    uneven = f"; sizes differ so much that they tell as much as {worth:.1f} equal ones"
    return [
        DataIssue(
            "few-groups",
            f"The {n_items:,} test items come in only {len(sizes)} groups by {groups.source}"
            + (uneven if worth < 0.9 * len(sizes) else ""),
            "test items of more groups; with few, intervals are wide, and more than 5 % of "
            "verdicts may be false (5 to 8 % in simulations).",
        )
    ]


def _one_group(source: str) -> DataIssue:
    return DataIssue(
        "one-test-group",
        f"All test items are in one group by {source}: how much groups differ is not known, and "
        "items count as independent",
        "the verdict is about this group only; test items of other groups make it a general one.",
    )


def _cut_short() -> DataIssue:
    return DataIssue(
        "test-groups-cut-short",
        f"The search for near-duplicates within test stopped at {MAX_COMPARISONS:,} pairs: some "
        "groups may be split",
        "move the text that all rows share from the column to the template.",
    )
