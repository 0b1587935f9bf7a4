"""Checks on the rows as text, before anything is loaded: what is wrong with them, and where.

Called by ``study`` when a study is opened: rows in, faults out. ``readable`` finds what keeps rows
from being read at all, ``telling`` what makes a comparison on them say less than it seems to. What
only tokens show is found by a worker (``preflight.check``). Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bakeoff.checks import answers, cells, repeats, shares
from bakeoff.checks.reading import Reading
from bakeoff.data import Row
from bakeoff.faults import Fault

__all__ = ["Reading", "readable", "telling"]


def readable(splits: Mapping[str, Sequence[Row]], reading: Reading) -> list[Fault]:
    """Return what is wrong with cells: missing, empty, not text, not encodable, unprintable."""
    faults = shares.empty(splits, reading)
    for split, rows in splits.items():
        faults += cells.check(split, rows, reading)
    return faults


def telling(splits: Mapping[str, Sequence[Row]], reading: Reading) -> list[Fault]:
    """Return repeats, leaks, contradictions, odd answers and odd splits of readable rows."""
    pairs = {split: [reading.pair(row) for row in rows] for split, rows in splits.items()}
    return [
        *shares.check(splits, reading),
        *repeats.check(pairs),
        *answers.check(pairs),
    ]
