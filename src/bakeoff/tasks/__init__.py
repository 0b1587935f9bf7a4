"""Tasks, one file each. ``_base.Task`` is the interface that a task implements.

A task module defines ``TASK``, a subclass of ``Task``. It imports torch and transformers inside the
methods that need them, so that the parent process can read its class attributes without them.
"""

from __future__ import annotations

from bakeoff.core.plugins import load_plugin
from bakeoff.tasks._base import Task


def task_class(kind: str) -> type[Task]:
    """Return the task called ``kind``.

    Raises:
        UsageError: ``unknown-task``, with the nearest name.
    """
    task: type[Task] = load_plugin("tasks", kind, "task").TASK
    return task
