"""Durations are measured with a monotonic clock, never with the wall clock."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

import bakeoff
from bakeoff.core.clock import wall_times
from bakeoff.study import run
from bakeoff.study.storage.database import Reader, Writer

SOURCE = Path(bakeoff.__file__).parent
STAMPED = {"integrations/trackers/mlflow.py", "integrations/trackers/tensorboard.py"}
"""Writers of other formats, whose points have the seconds since 1970."""


def wall_clock_call(node: ast.AST) -> str | None:
    """Return the name of the wall-clock function that a node calls, or None."""
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    return name if name.endswith(("time.time", ".now", ".utcnow", ".today")) else None


def test_durations_ignore_wall_clock() -> None:
    """No duration is measured with the wall clock.

    Fault 30: a clock that is set, summer time, nodes that differ.
    """
    calls = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = wall_clock_call(node)
            where = path.relative_to(SOURCE).as_posix()
            if name is not None and where not in STAMPED:
                calls += 1
                # when something happened may be written down, in UTC; how long it took may not
                assert "datetime.UTC" in ast.unparse(node), f"{where} asks for {name}"
    assert calls >= 1


def test_study_hours_ignore_clock_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study counts its hours correctly when the clock is set back.

    Fault 30: what its runs took is added up, by no clock that is set.
    """
    steady, wall = iter((10.0, 12.0, 15.0, 100.0, 107.0)), iter((5000.0, 4000.0, 3000.0))
    with Writer(tmp_path / "study.db") as store:
        monkeypatch.setattr(time, "monotonic", lambda: next(steady))
        monkeypatch.setattr(time, "time", lambda: next(wall))
        with run.record_wall_time(store) as passed:
            assert passed() == 2.0
        with run.record_wall_time(store):
            pass
        monkeypatch.undo()
        with Reader(tmp_path / "study.db") as reader:
            assert sum(wall_times(reader.values())) == 5.0 + 7.0
