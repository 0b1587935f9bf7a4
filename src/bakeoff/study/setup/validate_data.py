"""Hold a study's rows against the checks on text: refuse what is fatal, list the rest.

Called by ``study`` when it is opened, before a model is looked for; what a worker finds later is
refused and listed the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.errors import UsageError
from bakeoff.core.safe_read import STUDY_BYTES, UnreadableFile, read_text
from bakeoff.data import checks
from bakeoff.data.issues import DataIssue, as_error
from bakeoff.data.splits import Splits
from bakeoff.study.config import StudySpec
from bakeoff.study.config.inputs import TaskSpec
from bakeoff.study.monitoring.progress import Progress


def validate_rows(
    spec: StudySpec, source: Path, task: Any, splits: Splits
) -> tuple[dict[str, Any], list[DataIssue]]:
    """Check the rows as text; return the task's options and what is to be listed.

    Raises:
        PreflightError: what no study can be run on, all of it at once, with row numbers.
    """
    columns = task.columns(spec.data.columns, next(iter(splits.rows["train"]), ()))
    own = task.complete_options(spec.task.options)
    if chat := chat_options(spec.task, source, "messages" in task.structured):
        own["chat"] = chat
    reading = checks.CheckContext(
        fields=columns,
        structured=task.structured,
        texts=lambda row: task.texts(row, columns),
        group=spec.data.group,
        cut=splits.cut,
        sampled=any(spec.data.limit.model_dump().values()),
        batch_size=spec.budget.batch_size,
    )
    faults = checks.find_blocking_issues(splits.rows, reading)
    raise_fatal(faults, splits)
    checked = task.check(
        splits.rows,
        {
            "columns": columns,
            "max_length": spec.task.max_length,
            "max_new_tokens": spec.task.max_new_tokens,
            **own,
        },
    )
    raise_fatal(checked.faults, splits)
    return checked.options, [*faults, *checked.faults, *checks.find_warnings(splits.rows, reading)]


def chat_options(task: TaskSpec, source: Path, chats: bool) -> dict[str, Any]:
    """Return how the study wants conversations rendered: what it says, and nothing else.

    ``chats``: the task knows conversations.

    Raises:
        UsageError: ``chat-template-unreadable``, ``chat-not-for-task``.
    """
    template = None
    if task.chat_template is not None:
        path = source / Path(task.chat_template).expanduser()
        try:
            template = read_text(path, STUDY_BYTES)
        except UnreadableFile as error:
            raise UsageError(
                "chat-template-unreadable",
                f"task.chat_template = '{task.chat_template}' cannot be read: {error}.",
                "a UTF-8 text file with a Jinja template, relative to the study file.",
            ) from error
    wanted = {
        "pairs": task.chat,
        "system": task.system,
        "template": template,
        "variables": task.chat_template_kwargs,
    }
    given = {name: value for name, value in wanted.items() if value}
    if given and not chats:
        raise UsageError(
            "chat-not-for-task",
            f"[task] says how conversations are rendered, which '{task.kind}' has none of.",
            'kind = "sft", or leave chat, system, chat_template and chat_template_kwargs out.',
        )
    return given


def raise_fatal(faults: Sequence[DataIssue], splits: Splits) -> None:
    """Refuse fatal faults, all at once."""
    refused = as_error(faults, splits.place)
    if refused is not None:
        raise refused


def warning_texts(faults: Sequence[DataIssue], splits: Splits) -> list[str]:
    """Return the sentences that list faults which are not fatal."""
    return [fault.warning(splits.place) for fault in faults]


def report_warnings(warnings: Sequence[str], progress: Progress) -> tuple[str, ...]:
    """Say each warning; return them."""
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return tuple(warnings)
