"""Set the learning rate of the task's new output layer, the same for every method.

A head is initialised at random and often needs a larger rate than an adapter. If it had the
method's rate, methods with large rates would win by their head alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bakeoff.core import jobs
from bakeoff.core.format import format_learning_rate
from bakeoff.core.trial import LEARNING_RATE
from bakeoff.methods import registry
from bakeoff.study.config.inputs import JOINT, METHOD
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.remote import run_remote
from bakeoff.study.setup.defaults import with_task
from bakeoff.study.setup.study import Study, prior_trial, whole_segment
from bakeoff.study.storage.database import Writer
from bakeoff.tasks import task_class

KEY = "head"
"""Database value: ``learning_rate`` (None: the method's), its ``source`` (``tuned``, ``given``,
``method`` or ``joint``), and the ``grid`` of rates with their validation losses."""
HEAD_METHOD = "head"
"""The method that trains nothing but the output layer: its grid is of that layer's rates."""


def set_head_rate(
    study: Study, stored: Mapping[str, Any] | None, store: Writer, progress: Progress
) -> Study:
    """Return the study with the learning rate of its output layer; tune it if it is not stated.

    ``stored`` is what an earlier run has written; a rate is tuned only once. A study whose task
    has no output layer of its own is returned as it is. The study's folder must hold its data.

    Raises:
        BakeoffError: ``worker-failed``.
    """
    if not task_class(study.spec.task.kind).heads:
        return study
    stated = study.spec.task.head_learning_rate
    if stored is None or not _is_of(stored, stated):
        stored = _resolve(study, stated, progress)
        store.set(KEY, dict(stored))
    rate = stored[LEARNING_RATE]
    conditions = dataclasses.replace(study.conditions, head_learning_rate=rate)
    study = study._replace(conditions=conditions)
    if stated is None:
        spec = with_task(study.spec, head_learning_rate=rate)
        chosen = {**study.chosen, "head_learning_rate": describe_rate(stored)}
        study = study._replace(spec=spec, chosen=chosen)
    return study


def _is_of(stored: Mapping[str, Any], stated: float | str | None) -> bool:
    """Return whether a stored rate belongs to what the study file states."""
    if isinstance(stated, str):
        return bool(stored["source"] == stated)
    return stated is not None and bool(stored[LEARNING_RATE] == stated)


def _resolve(study: Study, stated: float | str | None, progress: Progress) -> dict[str, Any]:
    """Return the database value of a study that has none; tune the rate if necessary."""
    if stated == METHOD:
        return {LEARNING_RATE: None, "source": METHOD, "grid": []}
    if isinstance(stated, float):
        return {LEARNING_RATE: stated, "source": "given", "grid": []}
    found = tune_rate(study)
    value = {**found, "source": JOINT if stated == JOINT else "tuned"}
    progress.say(f"head_learning_rate {describe_rate(value)}")
    return value


def tune_rate(study: Study) -> dict[str, Any]:
    """Return the ``learning_rate`` of lowest loss on the head alone, and the ``grid``."""
    entry = registry.load(HEAD_METHOD, Path())
    trial = dataclasses.replace(prior_trial(study, entry), seed=study.spec.seed)
    segment = whole_segment(study, [trial])
    return run_remote(study.executor(), jobs.TUNE_HEAD, segment.to_json())


def describe_rate(stored: Mapping[str, Any]) -> str:
    """Return a note on a tuned rate, which begins with it."""
    rate, grid = stored[LEARNING_RATE], stored["grid"]
    low, high = (format_learning_rate(grid[i][LEARNING_RATE]) for i in (0, -1))
    return (
        f"{format_learning_rate(rate)}: of the new output layer in every method; tuned on that "
        f"layer alone, on validation ({len(grid)} rates from {low} to {high})"
    )
