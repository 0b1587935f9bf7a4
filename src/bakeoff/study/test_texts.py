"""The texts of the test items and their references, for the examples in a report.

They are read from the study's ``data/test.jsonl``, in the order of the scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files
from bakeoff.core.errors import BakeoffError
from bakeoff.core.names import is_within
from bakeoff.core.record import ItemText
from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial
from bakeoff.data import rows as data_rows
from bakeoff.data.splits import FROZEN_FILES
from bakeoff.tasks import task_class


class ItemTexts(NamedTuple):
    """The texts of the test items, or the reason why they are missing."""

    texts: tuple[ItemText, ...] = ()
    missing_reason: str | None = None


def text_fields(
    folder: Path, trials: Iterable[tuple[Trial, TrialResult | None]], examples: bool
) -> dict[str, Any]:
    """Return the fields of ``StudyRecord`` about item texts; these are read if ``examples``."""
    items = load_test_texts(folder, trials) if examples else ItemTexts()
    return {"examples": examples, "asked": items.texts, "asked_unknown": items.missing_reason}


def load_test_texts(folder: Path, trials: Iterable[tuple[Trial, TrialResult | None]]) -> ItemTexts:
    """Read the texts of the test items; none before a trial was scored on them."""
    scored = (t for t, result in trials if result is not None and "test" in result.splits)
    trial = next(scored, None)
    if trial is None:
        return ItemTexts()
    name, conditions = FROZEN_FILES["test"], trial.conditions
    file = folder / name
    if not is_within(file, folder) or not file.is_file():
        return ItemTexts(missing_reason=f"{name} is not in the study folder")
    try:
        # the texts of other rows would look plausible next to these predictions
        if files.sha256_of(file) != conditions.data.get("test"):
            return ItemTexts(missing_reason=f"{name} is not the file that was scored")
        rows = data_rows.read_rows(file)
        task = task_class(conditions.task)(conditions.task_options)
        references = task.references(rows)
        pairs = zip(rows, references, strict=True)
        return ItemTexts(tuple(ItemText(task.question(row), reference) for row, reference in pairs))
    except (BakeoffError, OSError, KeyError, TypeError, ValueError) as error:
        return ItemTexts(missing_reason=f"{name} cannot be read ({type(error).__name__})")
