"""Read the user's rows, rename columns, and cut missing splits from train."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.errors import PreflightError, near_match
from bakeoff.core.names import quote_path
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, read_json
from bakeoff.data import labels, sources, splits
from bakeoff.data import rows as data_rows
from bakeoff.data.chat.forms import first_values
from bakeoff.data.chat.template import EACH
from bakeoff.data.checks import cells
from bakeoff.data.issues import DataIssue, as_error
from bakeoff.data.splits import FROZEN_FILES, ORIGINS_FILE, Splits
from bakeoff.data.templates import render_template
from bakeoff.study.config import StudySpec
from bakeoff.tasks import task_class

LABEL = "label"
"""Field of a classification's label, and its default column."""


def read_splits(spec: StudySpec, source: Path) -> Splits:
    """Read the user's rows, rename columns, cut missing splits from train, and sample.

    Paths are relative to ``source``.

    Raises:
        PreflightError: an unreadable file, or an unsuitable group column.
    """
    limits = spec.data.limit.model_dump()
    rng = random.Random(spec.seed)
    loaded = sources.load_splits(
        _split_references(spec), source, spec.data.config, spec.data.revision, spec.data.encoding
    )
    rows = {name: split.rows for name, split in loaded.items()}
    rows = _rename_columns(rows, spec.data.rename)
    notes: tuple[str, ...] = ()
    if LABEL in task_class(spec.task.kind).fields:
        rows, notes = labels.unify_labels(rows, spec.data.columns.get(LABEL, LABEL))
    label_of = _label_reader(spec)
    rows, cut, cut_notes = _cut_missing_splits(spec, rows, label_of)
    sampled = {name: splits.sample_rows(rows[name], limits[name], rng) for name in data_rows.SPLITS}
    if label_of is not None:
        sampled["train"], limit_notes = splits.add_missing_labels(
            sampled["train"], rows["train"], label_of
        )
        notes = (*notes, *cut_notes, *limit_notes)
    origins = {
        name: _with_labels(split.origin, spec.data.rename, notes if name == "train" else ())
        for name, split in loaded.items()
    }
    origins |= {name: {**origins["train"], "share": share} for name, share in cut.items()}
    if (source / ORIGINS_FILE).is_file() and _split_references(spec) == FROZEN_FILES:
        origins = _read_origins(source / ORIGINS_FILE)
    return Splits(sampled, cut, origins)


def _with_labels(
    origin: dict[str, Any], names: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    """Return an origin with further notes, and with the columns of its labels renamed."""
    if notes:
        origin = {**origin, "notes": [*origin.get("notes", ()), *notes]}
    if "labels" in origin:
        named = {names.get(column, column): value for column, value in origin["labels"].items()}
        origin = {**origin, "labels": named}
    return origin


def split_turns(spec: StudySpec, task: Any, given: Splits) -> Splits:
    """Return the splits with a training row for each assistant turn, if the study asks for them.

    Validation and test keep their conversations: their last turns are independent of each other.
    """
    if spec.task.supervise != EACH or not given.rows["train"]:
        return given
    columns = task.columns(
        spec.data.columns, first_values(r for rows in given.rows.values() for r in rows)
    )
    train = task.split_turns(given.rows["train"], columns)
    return given._replace(rows={**given.rows, "train": train})


def _read_origins(path: Path) -> dict[str, Any]:
    """Read the origins of frozen splits.

    Raises:
        PreflightError: ``origins-broken``.
    """
    try:
        origins = read_json(path, CONFIG_BYTES)
    except UnreadableFile as error:
        raise PreflightError(
            "origins-broken", f"{path} cannot be read: {error}.", f"`rm {quote_path(path)}`."
        ) from error
    return origins if isinstance(origins, dict) else {}


def _split_references(spec: StudySpec) -> dict[str, str]:
    references = {name: getattr(spec.data, name) for name in data_rows.SPLITS}
    return {name: reference for name, reference in references.items() if reference is not None}


def _label_reader(spec: StudySpec) -> splits.LabelOf | None:
    """Return a function that reads a row's label, None if the task has no labels."""
    if LABEL not in task_class(spec.task.kind).fields:
        return None
    column = spec.data.columns.get(LABEL, LABEL)

    def label_of(row: data_rows.Row) -> str | None:
        try:
            return render_template(column, row) or None
        except (KeyError, PreflightError):  # reported with the other rows that lack a cell
            return None

    return label_of


def _cut_missing_splits(
    spec: StudySpec, given: dict[str, list[data_rows.Row]], label_of: splits.LabelOf | None
) -> tuple[dict[str, list[data_rows.Row]], dict[str, float], tuple[str, ...]]:
    """Return the rows of all splits, the share of train that each cut split has, and notes."""
    missing = {
        name: getattr(spec.data, f"{name}_fraction")
        for name in ("validation", "test")
        if name not in given
    }
    if not missing:
        return given, {}, ()
    rows = given.pop("train")
    if spec.data.group is not None:
        _check_group(rows, spec.data.group)
    fractions = {"train": 1.0 - sum(missing.values()), **missing}
    cut = splits.split_rows(rows, spec.data.group, fractions, random.Random(spec.seed), label_of)
    return given | cut.rows, fractions, cut.notes


def _rename_columns(
    given: dict[str, list[data_rows.Row]], names: Mapping[str, str]
) -> dict[str, list[data_rows.Row]]:
    """Rename the columns as ``data.rename`` asks.

    Raises:
        PreflightError: ``rename-taken`` with the rows that would lose a column, ``column-missing``
            for a column that no split has, with the near match.
    """
    issues = []
    for old, new in names.items():
        candidates = {new, *(o for o, n in names.items() if n == new)}
        for split, rows in given.items():
            clashes = [i for i, row in enumerate(rows) if len(candidates & row.keys()) > 1]
            cause = f"data.rename makes one '{new}' of several columns"
            hint = "another name in `data.rename`."
            if clashes:
                issues.append(
                    DataIssue.at("rename-taken", cause, hint, split, clashes, len(rows), fatal=True)
                )
        present = {str(name): None for rows in given.values() for row in rows for name in row}
        if old not in present:
            near = near_match(old, present)
            hint = f"did you mean '{near}'? " if near else ""
            issues.append(
                DataIssue(
                    "column-missing",
                    f"No row of any split has the column '{old}' (data.rename)",
                    f"{hint}The rows have: {', '.join(present)}.",
                    fatal=True,
                )
            )
    if (error := as_error(issues, Splits(given, {}).place)) is not None:
        raise error
    return {
        split: [data_rows.rename_columns(row, names) for row in rows]
        for split, rows in given.items()
    }


def _check_group(rows: Sequence[data_rows.Row], group: str) -> None:
    """Check that every row has the group column, and that it has more than one value.

    Raises:
        PreflightError: ``one-group``, and the issues of missing values.
    """
    issues = cells.find_missing_values("train", rows, "data.group", group)
    values = {str(row.get(group)) for row in rows}
    if not issues and len(values) == 1:
        issues = [
            DataIssue(
                "one-group",
                f"Every row has the same '{group}', '{min(values)}': no split can be cut",
                "another column in `data.group`, or none.",
                fatal=True,
            )
        ]
    whole = Splits({"train": list(rows)}, {})
    if (error := as_error(issues, whole.place)) is not None:
        raise error
