"""Splits of a study: cut one file into splits, sample rows, keep their origins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bakeoff.data import rows as data_rows
from bakeoff.data.issues import Place
from bakeoff.data.rows import Row

FROZEN_FILES = {name: f"data/{name}.jsonl" for name in data_rows.SPLITS}
ORIGINS_FILE = "data/origins.json"


def split_rows(
    rows: Sequence[Row], group: str | None, fractions: Mapping[str, float], rng: random.Random
) -> dict[str, list[Row]]:
    """Cut ``rows`` into splits; rows with the same value in the ``group`` column stay together.

    ``fractions`` maps a split to its share of the groups. Each split keeps the order of the file.
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
    return {s: [r for r, k in zip(rows, keys, strict=True) if home.get(k) == s] for s in fractions}


def sample_rows(rows: list[Row], limit: int | None, rng: random.Random) -> list[Row]:
    """Return at most ``limit`` random rows, in the order of the file."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), limit))]


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
