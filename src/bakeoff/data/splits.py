"""The splits of a study: their rows, how they are cut from one file, where they came from."""

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
    """Cut ``rows`` into splits; rows that share the ``group`` column stay together.

    The order inside a split is the order of the file. Every split gets at least one group.
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
    """Return at most ``limit`` rows, drawn at random, in the order of the file."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), limit))]


class Splits(NamedTuple):
    """The rows of each split, and the general text that forgetting is measured on."""

    rows: dict[str, list[data_rows.Row]]
    cut: dict[str, float]
    """The splits that were cut from one file -> the share of its rows that each was to get."""
    origins: dict[str, Any] = {}
    """Where each split came from, for the report."""
    general: Sequence[data_rows.Row] = ()

    def place(self, split: str, position: int) -> Place:
        """Return where a row stands in the user's file."""
        return data_rows.place_of(self.rows[split][position], split, position)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: len(rows) for name, rows in self.rows.items()}
