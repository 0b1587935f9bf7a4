"""Hold a study's rows against the checks on text: refuse what is fatal, list the rest.

Called by ``study`` when it is opened, before a model is looked for; what a worker finds later is
refused and listed the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bakeoff import checks
from bakeoff.faults import Fault, refusal
from bakeoff.folder import Splits
from bakeoff.progress import Progress
from bakeoff.spec import StudySpec


def examine(spec: StudySpec, task: Any, splits: Splits) -> tuple[dict[str, Any], list[Fault]]:
    """Check the rows as text; return the task's options and what is to be listed.

    Raises:
        PreflightError: what no study can be run on, all of it at once, with row numbers.
    """
    columns = task.columns(spec.data.columns)
    own = task.completed(spec.task.options)
    reading = checks.Reading(
        fields=columns,
        structured=task.structured,
        texts=lambda row: task.texts(row, columns),
        group=spec.data.group,
        cut=splits.cut,
        sampled=any(spec.data.limit.model_dump().values()),
        batch_size=spec.budget.batch_size,
    )
    faults = checks.readable(splits.rows, reading)
    refuse(faults, splits)
    checked = task.check(
        splits.rows,
        {
            "columns": columns,
            "max_length": spec.task.max_length,
            "max_new_tokens": spec.task.max_new_tokens,
            **own,
        },
    )
    refuse(checked.faults, splits)
    return checked.options, [*faults, *checked.faults, *checks.telling(splits.rows, reading)]


def refuse(faults: Sequence[Fault], splits: Splits) -> None:
    """Refuse fatal faults, all at once."""
    refused = refusal(faults, splits.place)
    if refused is not None:
        raise refused


def listed(faults: Sequence[Fault], splits: Splits) -> list[str]:
    """Return the sentences that list faults which are not fatal."""
    return [fault.warning(splits.place) for fault in faults]


def said(warnings: Sequence[str], progress: Progress) -> tuple[str, ...]:
    """Say each warning; return them."""
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return tuple(warnings)
