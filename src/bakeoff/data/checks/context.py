"""The properties of a study that checks need to read its rows, independent of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from bakeoff.data.rows import Row


class PromptAnswer(NamedTuple):
    """The prompt and the answer of a row, as plain text."""

    prompt: str
    answer: str


class CheckContext(NamedTuple):
    """The task's columns, and how the splits were made."""

    fields: Mapping[str, str]
    """The task's field -> column or template."""
    structured: frozenset[str]
    """Fields whose column holds more than text (a conversation); the task reads them itself."""
    texts: Callable[[Row], tuple[str, str]]
    """Row -> its prompt and answer."""
    optional: frozenset[str] = frozenset()
    """Fields that a row may leave empty; those that are structured may be missing too."""
    group: str | None = None
    """Column whose rows belong into one split."""
    cut: Mapping[str, float] = {}
    """The splits that were cut from one file -> the share of its rows that each should get."""
    sampled: bool = False
    """Whether only some rows of a split are used."""
    batch_size: int = 1

    def prompt_answer(self, row: Row) -> PromptAnswer:
        """Return the prompt and the answer of a row."""
        return PromptAnswer(*self.texts(row))
