"""Choose what a study file leaves open, and describe each choice in a line.

The length limit and the steps depend on the rows. They are chosen when a study starts, and are then
part of it: a later run of the same study file, a fork and the report use the same values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bakeoff.core.errors import UsageError
from bakeoff.core.format import plural
from bakeoff.core.record import MetricInfo
from bakeoff.core.trial import MethodEntry
from bakeoff.data.splits import Splits
from bakeoff.data.templates import columns_of
from bakeoff.study.config import StudySpec
from bakeoff.study.config.inputs import METHOD
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.planning.defaults import (
    PROMPT_ROOM,
    RowLengths,
    choose_max_length,
    choose_steps,
    short_pass_note,
)
from bakeoff.study.planning.rounds import ROUNDS
from bakeoff.study.remote import is_remote
from bakeoff.study.setup.base_model import ResolvedBase
from bakeoff.study.storage import study_dir
from bakeoff.study.storage.database import Reader
from bakeoff.tasks import task_class

MAX_COLUMNS = 20
"""Most columns that are named in a line."""


class Choices(NamedTuple):
    """A study's configuration without open values, and a note on each choice by its key.

    ``remark`` is on a stated value.
    """

    spec: StudySpec
    notes: dict[str, str]
    remark: str | None = None


def restore_choices(spec: StudySpec, folder: Path, progress: Progress) -> StudySpec:
    """Return the spec with the values that the study in ``folder`` was started with.

    Only values that the spec does not state are restored. Studies of older versions were started
    with fixed defaults, which are restored too.
    """
    frozen = frozen_values(folder)
    if not frozen:
        return spec
    before, restored = frozen["spec"], []
    length, steps = spec.task.max_length, spec.budget.steps
    if length is None:
        length = before["task"]["max_length"]
        restored.append(f"max_length {length:,}")
    if steps is None and spec.budget.hours is None:
        steps = before["budget"]["steps"]
        restored.append(f"steps {steps:,}")
    if spec.task.head_learning_rate is None and task_class(spec.task.kind).heads:
        # studies older than this default have no such value: the head had the method's rate
        head = before["task"].get("head_learning_rate", METHOD)
        spec = with_task(spec, head_learning_rate=head)
        restored.append(f"head_learning_rate {head}")
    saved = before["task"].get("saved_learning_rate")
    if spec.task.saved_learning_rate is None and saved is not None:
        spec = with_task(spec, saved_learning_rate=saved)
        restored.append(f"saved_learning_rate {saved}")
    if not restored:
        return spec
    progress.say(f"{', '.join(restored)}: as when the study in {folder} was started.")
    return _with_values(spec, length, steps)


def frozen_values(folder: Path) -> Mapping[str, Any]:
    """Return the frozen values of the study in ``folder``, empty if there is none yet."""
    if (folder / study_dir.DATABASE).is_file():
        with contextlib.suppress(UsageError), Reader(folder / study_dir.DATABASE) as reader:
            found: Mapping[str, Any] = reader.values("frozen").get("frozen", {})
            return found  # UsageError: it is still empty
    return {}


def _with_values(spec: StudySpec, max_length: int | None, steps: int | None) -> StudySpec:
    spec = with_task(spec, max_length=max_length)
    if steps is None:
        return spec
    return spec.model_copy(update={"budget": spec.budget.model_copy(update={"steps": steps})})


def with_task(spec: StudySpec, **values: Any) -> StudySpec:
    """Return the spec with other values under `[task]`."""
    return spec.model_copy(update={"task": spec.task.model_copy(update=values)})


@contextlib.contextmanager
def length_request(
    spec: StudySpec, options: Mapping[str, Any], base: ResolvedBase, splits: Splits, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the request for the rows' lengths, empty if the study states ``max_length``.

    It names a temporary folder with the rows. If other machines run the study, the folder is
    created inside the study folder, which they can see.
    """
    if spec.task.max_length is not None:
        yield {}
        return
    parent = folder.resolve() if is_remote(spec) else None
    with TemporaryDirectory(prefix=".bakeoff-", dir=parent) as name:
        study_dir.freeze_data(Path(name), splits)
        segment: dict[str, Any] = {
            "folder": name,
            "trials": [],
            "base_path": base.path,
            "revision": base.commit or spec.base.revision,
            "trusted": spec.base.trust_remote_code,
            "task": spec.task.kind,
            "options": dict(options),
        }
        yield {"segment": segment}


def choose_open_values(
    spec: StudySpec,
    splits: Splits,
    entries: Sequence[MethodEntry],
    machine: Mapping[str, Any],
    counted: Mapping[str, Any] | None,
) -> Choices:
    """Choose the length limit and the steps, if the study file states none.

    ``counted`` is the answer to ``length_request``. A time budget chooses the steps later.
    """
    notes: dict[str, str] = {}
    max_length, steps = spec.task.max_length, spec.budget.steps
    if max_length is None and counted is not None:
        max_length, notes["max_length"] = choose_max_length(_row_lengths(counted, entries))
    rows, batch_size = len(splits.rows["train"]), spec.budget.batch_size
    remark = None if steps is None else short_pass_note(steps, rows, batch_size)
    if steps is None and spec.budget.hours is None:
        steps, notes["steps"] = choose_steps(rows, batch_size, machine["device"])
    return Choices(_with_values(spec, max_length, steps), notes, remark)


def _row_lengths(counted: Mapping[str, Any], entries: Sequence[MethodEntry]) -> RowLengths:
    """Return the lengths, with the positions that virtual tokens and generated answers leave."""
    positions, answer = counted["positions"], counted["answer"]
    if positions is not None:
        virtual = max((e.config.get("num_virtual_tokens") or 0 for e in entries), default=0)
        least = answer + PROMPT_ROOM if answer else 1
        positions = max(
            positions - virtual - counted["new_tokens"], min(positions - virtual, least)
        )
    return RowLengths(dict(counted["rows"]), answer, positions)


def describe_defaults(
    spec: StudySpec, splits: Splits, metric: MetricInfo, machine: Mapping[str, Any]
) -> dict[str, str]:
    """Return a note on each default of a study file that does not depend on the rows, by key."""
    notes, budget = {}, spec.budget
    if splits.cut:
        counts = ", ".join(f"{count:,} {name}" for name, count in splits.counts.items())
        cut = " and ".join(name for name in splits.cut if name != "train")
        notes["splits"] = f"{counts} rows; {cut} cut from the training file"
    if {"metric", "margin"} - spec.task.model_fields_set:
        fraction = (metric.low, metric.high) == (0.0, 1.0)
        margin = f"{100 * spec.task.margin:g} points" if fraction else f"{spec.task.margin:g}"
        notes["metric"] = f"{metric.name}; differences under {margin} do not matter (margin)"
    if budget.hours is None and {"settings", "seeds"} - budget.model_fields_set:
        seeds = (
            "each seed's best on test; seeds are added until the verdicts are reached"
            if budget.seeds == ROUNDS
            else f"the best of each of {plural(int(budget.seeds), 'seed')} on test"
        )
        notes["trials"] = f"{budget.settings} learning rates for each method on validation, {seeds}"
    if spec.task.head_learning_rate is None and task_class(spec.task.kind).heads:
        notes["head_learning_rate"] = (
            "of the new output layer: tuned on it alone before the first trial, the same for every "
            "method"
        )
    if "precision" not in spec.engine.model_fields_set:
        notes["machine"] = (
            f"{machine['precision']} on {machine['device']}, {plural(machine['threads'], 'thread')}"
        )
    return notes


def unused_columns(splits: Splits, fields: Mapping[str, str], group: str | None) -> tuple[str, ...]:
    """Return the columns of train that neither a field of the task nor ``data.group`` reads."""
    named = {column for template in fields.values() for column in columns_of(template)} | {group}
    # a dotted name may be a path into a column
    used = named | {name.partition(".")[0] for name in named if name is not None}
    present = dict.fromkeys(str(name) for row in splits.rows["train"] for name in row)
    return tuple(name for name in present if name not in used)


def report_choices(choices: Choices, unused: Sequence[str], progress: Progress) -> None:
    """Show the notes on defaults in one block, then the columns that are not used."""
    if choices.notes:
        progress.say("Not stated in the study file, so chosen:")
    for key, note in choices.notes.items():
        progress.say(f"  {key} {note}")
    if choices.remark is not None:
        progress.say(choices.remark)
    if unused:
        more = len(unused) - MAX_COLUMNS
        names = ", ".join(unused[:MAX_COLUMNS]) + (f" and {more} more" if more > 0 else "")
        progress.say(f"Columns that are not used: {names}")
