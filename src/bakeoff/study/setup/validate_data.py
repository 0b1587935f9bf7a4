"""Check a study's rows as text, before a model is loaded: raise fatal issues, return warnings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.errors import UsageError
from bakeoff.core.names import expand_home
from bakeoff.core.safe_read import STUDY_BYTES, UnreadableFile, read_text
from bakeoff.data import checks
from bakeoff.data.chat.forms import first_values
from bakeoff.data.issues import DataIssue, as_error, list_warnings
from bakeoff.data.labels import sort_labels
from bakeoff.data.splits import Splits
from bakeoff.study.config import StudySpec
from bakeoff.study.config.inputs import TaskSpec
from bakeoff.study.monitoring.progress import Progress


def validate_rows(
    spec: StudySpec, source: Path, task: Any, splits: Splits
) -> tuple[dict[str, Any], list[DataIssue]]:
    """Check the rows as text; return the task's resolved options and the issues to warn about.

    Raises:
        PreflightError: all fatal issues, with row numbers.
    """
    columns = task.columns(
        spec.data.columns, first_values(r for rows in splits.rows.values() for r in rows)
    )
    options = task.complete_options(spec.task.options)
    if chat := chat_options(spec.task, source, "messages" in task.structured):
        options["chat"] = chat
    context = checks.CheckContext(
        fields={f: c for f, c in columns.items() if f not in task.optional & task.structured},
        structured=task.structured,
        optional=task.optional,
        texts=lambda row: task.texts(row, columns),
        group=spec.data.group,
        cut=splits.cut,
        sampled=any(spec.data.limit.model_dump().values()),
        batch_size=spec.budget.batch_size,
    )
    issues = checks.find_blocking_issues(splits.rows, context)
    raise_fatal(issues, splits)
    checked = task.check(
        splits.rows,
        {
            "columns": columns,
            "max_length": spec.task.max_length,
            "max_new_tokens": spec.task.max_new_tokens,
            **options,
        },
    )
    raise_fatal(checked.issues, splits)
    options = _in_named_order(checked.options, splits)
    return options, [*issues, *checked.issues, *checks.find_warnings(splits.rows, context)]


def _in_named_order(options: dict[str, Any], splits: Splits) -> dict[str, Any]:
    """Return a task's options with the labels in the order that the training data gives them."""
    column = options["columns"].get("label")
    names = splits.origins.get("train", {}).get("labels", {}).get(column)
    if names is None or "labels" not in options:
        return options
    return {**options, "labels": sort_labels(options["labels"], names)}


def chat_options(task: TaskSpec, source: Path, chats: bool) -> dict[str, Any]:
    """Return the study's options for rendering conversations; only those that are set.

    ``chats``: the task supports conversations.

    Raises:
        UsageError: ``chat-template-unreadable``, ``chat-not-for-task``.
    """
    template = None
    if task.chat_template is not None:
        path = source / expand_home(task.chat_template)
        try:
            template = read_text(path, STUDY_BYTES)
        except UnreadableFile as error:
            raise UsageError(
                "chat-template-unreadable",
                f"task.chat_template = '{task.chat_template}' cannot be read: {error}.",
                "a UTF-8 text file with a Jinja template, relative to the study file.",
            ) from error
    options = {
        "pairs": task.chat,
        "system": task.system,
        "template": template,
        "variables": task.chat_template_kwargs,
        "supervise": task.supervise,
    }
    options = {name: value for name, value in options.items() if value}
    if options and not chats:
        raise UsageError(
            "chat-not-for-task",
            f"[task] has options for conversations, which the task '{task.kind}' does not support.",
            'kind = "sft", or leave chat, system, supervise, chat_template and '
            "chat_template_kwargs out.",
        )
    return options


def raise_fatal(issues: Sequence[DataIssue], splits: Splits) -> None:
    """Raise one error for all fatal issues, if there are any."""
    error = as_error(issues, splits.place)
    if error is not None:
        raise error


def warning_texts(issues: Sequence[DataIssue], splits: Splits) -> list[str]:
    """Return a warning for each kind of issue."""
    return list_warnings(issues, splits.place)


def report_warnings(warnings: Sequence[str], progress: Progress) -> tuple[str, ...]:
    """Show each warning to the user; return them."""
    if hasattr(progress, "warn"):
        progress.warn(warnings)
    else:  # a user's own listener need not derive from Progress
        for warning in warnings:
            progress.say(f"warning: {warning}")
    return tuple(warnings)
