"""Read the user's rows, rename columns, and cut missing splits from train."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.errors import PreflightError, near_match
from bakeoff.core.names import quote_path
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, read_json
from bakeoff.data import rows as data_rows
from bakeoff.data import sources, splits
from bakeoff.data.chat.forms import first_values
from bakeoff.data.chat.template import EACH
from bakeoff.data.checks import cells
from bakeoff.data.issues import DataIssue, as_error
from bakeoff.data.splits import FROZEN_FILES, ORIGINS_FILE, Splits
from bakeoff.study.config import StudySpec


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
    rows, cut = _cut_missing_splits(spec, {name: split.rows for name, split in loaded.items()})
    origins = {name: split.origin for name, split in loaded.items()}
    origins |= {name: {**origins["train"], "share": share} for name, share in cut.items()}
    if (source / ORIGINS_FILE).is_file() and _split_references(spec) == FROZEN_FILES:
        origins = _read_origins(source / ORIGINS_FILE)
    sampled = {name: splits.sample_rows(rows[name], limits[name], rng) for name in data_rows.SPLITS}
    return Splits(sampled, cut, origins)


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


def _cut_missing_splits(
    spec: StudySpec, given: dict[str, list[data_rows.Row]]
) -> tuple[dict[str, list[data_rows.Row]], dict[str, float]]:
    """Return the rows of all splits, and the share of train that each cut split has."""
    missing = {
        name: getattr(spec.data, f"{name}_fraction")
        for name in ("validation", "test")
        if name not in given
    }
    given = _rename_columns(given, spec.data.rename)
    if not missing:
        return given, {}
    rows = given.pop("train")
    if spec.data.group is not None:
        _check_group(rows, spec.data.group)
    fractions = {"train": 1.0 - sum(missing.values()), **missing}
    return given | splits.split_rows(
        rows, spec.data.group, fractions, random.Random(spec.seed)
    ), fractions


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
