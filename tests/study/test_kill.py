"""kill -9 at any moment: what was acknowledged is there, and the study ends with the same numbers.

Faults 1 to 3 and 9 of docs/reliability.md. ``benchmarks/crash.py`` kills 300 times.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import kills

TWICE = (
    "a step", "the optimizer", "a state", "the disk's word", "a renaming", "a trial's folder",
    "results' rows", "decisions' rows", "a commit", "dropped states",
)  # fmt: skip
"""Before and after these: in between lies what must not be torn."""
MOMENTS = [
    f"{when} {name}"
    for name in kills.WATCHED
    for when in (("before", "after") if name in TWICE else ("before",))
]

KILLS = 6
"""Kills of one study: the first at its moment in a fresh study, the others in resumed ones."""
_STUDIES = len(MOMENTS) // KILLS
CHAINS = [tuple(MOMENTS[i::_STUDIES]) for i in range(_STUDIES)]


class Whole(NamedTuple):
    """A study that nothing interrupted."""

    values: dict[str, Any]
    source: Path
    report: dict[str, Any]
    rows: dict[str, Any]
    moments: list[kills.Moment]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    source = tmp_path_factory.mktemp("whole")
    values = kills.small(source)
    found = kills.moments(values, source, source / "out")
    report = json.loads((source / "out" / "report.json").read_text())
    return Whole(
        values, source, kills.stable_numbers(report), kills.trial_rows(source / "out"), found
    )


def test_kill_moments_cover_study(whole: Whole) -> None:
    """The moments of the kills are spread over the whole study."""
    assert set(MOMENTS) <= {name for name, _ in whole.moments}
    assert len(MOMENTS) >= 30


def next_moment(name: str, after: int, whole: Whole) -> kills.Moment:
    """Return one of the moments called ``name`` that come after position ``after``.

    In a fresh study it is the middle one. A resumed study can have fewer, because it groups trials
    differently: of rare moments it is the first, of the others the end of the first
    quarter.
    """
    remaining = sum(n == name for n, _ in whole.moments[after:])
    assert remaining, f"no {name!r} after the last kill"
    if not after:
        return name, remaining // 2
    return name, remaining // 4 if remaining > KILLS else 0


@pytest.mark.parametrize("names", CHAINS, ids=", ".join)
def test_killed_study_same_numbers(names: tuple[str, ...], whole: Whole, tmp_path: Path) -> None:
    """A study that is killed several times ends with the same numbers."""
    out = tmp_path / "out"
    places = {n: [i for i, (name, _) in enumerate(whole.moments) if name == n] for n in names}
    middles = {n: at[len(at) // 2] for n, at in places.items()}
    before: dict[str, Any] = {}
    position = 0
    for name in sorted(names, key=middles.__getitem__):
        moment = next_moment(name, position, whole)
        code = kills.run(whole.values, whole.source, out, moment)
        assert code == -signal.SIGKILL, f"not killed at {moment}"
        after = kills.trial_rows(out)
        assert before.items() <= after.items(), "an acknowledged row was lost or changed"
        assert after.items() <= whole.rows.items(), "a row that is not what the whole study has"
        before, position = after, middles[name]
    assert kills.run(whole.values, whole.source, out) == 0
    after = kills.trial_rows(out)
    assert before.items() <= after.items(), "an acknowledged row was lost or changed"
    assert after == whole.rows
    assert kills.stable_numbers(json.loads((out / "report.json").read_text())) == whole.report
    assert kills.leftovers(out) == []
