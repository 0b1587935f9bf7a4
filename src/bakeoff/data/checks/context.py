"""How a study reads its rows: which columns its task draws on, what is asked, what is answered.

What every check on text is given beside the rows; plain values, so that no check knows a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from bakeoff.data.rows import Row


class PromptAnswer(NamedTuple):
    """What a row asks and what it answers, as plain text."""

    asked: str
    answer: str


class CheckContext(NamedTuple):
    """What checks must know of a study to read its rows."""

    fields: Mapping[str, str]
    """The task's field -> column or template."""
    structured: frozenset[str]
    """Fields whose column holds more than text (a conversation), which the task reads itself."""
    texts: Callable[[Row], tuple[str, str]]
    """Row -> what it asks and what it answers."""
    group: str | None = None
    """Column whose rows belong into one split."""
    cut: Mapping[str, float] = {}
    """The splits that were cut from one file -> the share of its rows that each was to get."""
    sampled: bool = False
    """Whether only some rows of a split were taken."""
    batch_size: int = 1

    def pair(self, row: Row) -> PromptAnswer:
        """Return what a row asks and answers."""
        return PromptAnswer(*self.texts(row))
