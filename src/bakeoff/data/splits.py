"""Splits of a study: cut one file into splits, sample rows, keep their origins."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError
from bakeoff.data import rows as data_rows
from bakeoff.data.issues import MAX_SHOWN, Place
from bakeoff.data.rows import Row

FROZEN_FILES = {name: f"data/{name}.jsonl" for name in data_rows.SPLITS}
ORIGINS_FILE = "data/origins.json"


LabelOf = Callable[[Row], str | None]
"""Row -> its label, None if it has none."""


class LabelledRows(NamedTuple):
    """Rows in which train has every label, and how that was reached."""

    rows: dict[str, list[Row]]
    notes: tuple[str, ...] = ()


def split_rows(
    rows: Sequence[Row],
    group: str | None,
    fractions: Mapping[str, float],
    rng: random.Random,
    label_of: LabelOf | None = None,
) -> LabelledRows:
    """Cut ``rows`` into splits; rows with the same value in the ``group`` column stay together.

    ``fractions`` maps a split to its share of the groups. Each split keeps the order of the file.
    With ``label_of``, a label that the random cut leaves out of train gets its smallest group back.
    """
    keys = [str(r.get(group)) if group else str(i) for i, r in enumerate(rows)]
    groups = sorted(set(keys))
    rng.shuffle(groups)
    home: dict[str, str] = {}
    start = 0.0
    for split, fraction in fractions.items():
        stop = start + fraction
        for name in groups[round(start * len(groups)) : round(stop * len(groups))]:
            home[name] = split
        start = stop
    notes = () if label_of is None else _return_rare_labels(rows, keys, groups, home, label_of)
    cut = {s: [r for r, k in zip(rows, keys, strict=True) if home.get(k) == s] for s in fractions}
    return LabelledRows(cut, notes)


def _return_rare_labels(
    rows: Sequence[Row],
    keys: Sequence[str],
    groups: Sequence[str],
    home: dict[str, str],
    label_of: LabelOf,
) -> tuple[str, ...]:
    """Move the smallest group of each label without a row in train there; return a note on it."""
    sizes = Counter(keys)
    groups_of: dict[str, set[str]] = {}
    for row, key in zip(rows, keys, strict=True):
        if (label := label_of(row)) is not None:
            groups_of.setdefault(label, set()).add(key)

    def is_lost(label: str) -> bool:
        return all(home.get(key) != "train" for key in groups_of[label])

    lost = sorted(filter(is_lost, groups_of), key=lambda name: (len(groups_of[name]), name))
    moved: list[str] = []
    for label in lost:
        if is_lost(label):  # a group that came back for another label may have it
            candidates = (key for key in groups if key in groups_of[label])
            moved.append(min(candidates, key=lambda key: sizes[key]))
            home[moved[-1]] = "train"
    if not lost:
        return ()
    count = sum(sizes[key] for key in moved)
    return (
        f"The random cut left {_name_labels(lost)} without a row in train: {_rows(count)} "
        f"{'stays' if count == 1 else 'stay'} in train for that.",
    )


def sample_rows(rows: list[Row], limit: int | None, rng: random.Random) -> list[Row]:
    """Return at most ``limit`` random rows, in the order of the file."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), limit))]


def add_missing_labels(
    sample: list[Row], rows: Sequence[Row], label_of: LabelOf
) -> tuple[list[Row], tuple[str, ...]]:
    """Return a sample of ``rows`` of the same size that has all of their labels, and a note on it.

    The first row of a label that the sample lacks takes the place of the last one of the most
    frequent label.

    Raises:
        PreflightError: ``limit-below-labels``.
    """
    labels = [label_of(row) for row in rows]
    first = {label: i for i, label in reversed(list(enumerate(labels))) if label is not None}
    position = {id(row): i for i, row in enumerate(rows)}
    chosen = [position[id(row)] for row in sample]
    missing = sorted(first.keys() - {labels[i] for i in chosen})
    if not missing:
        return sample, ()
    if len(first) > len(sample):
        raise PreflightError(
            "limit-below-labels",
            f"data.limit.train = {len(sample)}, but train has {len(first)} labels: some would have "
            "no row.",
            f"data.limit.train = {len(first)} or more; or leave out rows of labels that you do not "
            "need.",
        )
    for label in missing:
        counts = Counter(labels[i] for i in chosen)
        most = max(counts, key=lambda name: (counts[name], str(name)))
        chosen.remove(max(i for i in chosen if labels[i] == most))
        chosen.append(first[label])
    note = (
        f"data.limit left {_name_labels(missing)} without a row in train: "
        f"{_rows(len(missing))} of {'it' if len(missing) == 1 else 'them'} "
        f"{'replaces' if len(missing) == 1 else 'replace'} rows of frequent labels."
    )
    return [rows[i] for i in sorted(chosen)], (note,)


def _name_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:MAX_SHOWN])
    more = f" and {len(labels) - MAX_SHOWN} more" if len(labels) > MAX_SHOWN else ""
    return f"{len(labels)} {'label' if len(labels) == 1 else 'labels'} ({shown}{more})"


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


class Splits(NamedTuple):
    """The rows of each split, and the general text for forgetting."""

    rows: dict[str, list[data_rows.Row]]
    cut: dict[str, float]
    """The splits that were cut from one file -> the share of its rows that each should get."""
    origins: dict[str, Any] = {}
    """The origin of each split, for the report."""
    general: Sequence[data_rows.Row] = ()

    def place(self, split: str, position: int) -> Place:
        """Return the place of a row in the user's file."""
        return data_rows.place_of(self.rows[split][position], split, position)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was guessed or left out when the splits were read, each line once."""
        origins = self.origins.values()
        notes = [note for origin in origins for note in origin.get("notes", ())]
        return tuple(dict.fromkeys(notes))

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: len(rows) for name, rows in self.rows.items()}
