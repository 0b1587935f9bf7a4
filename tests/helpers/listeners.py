"""A progress listener that keeps what it was told, and studies that were run once."""

from __future__ import annotations

import copy
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bakeoff import api
from bakeoff.study.config import parse_spec
from bakeoff.study.monitoring.progress import Progress
from bakeoff.testing.tiny import rows, write_jsonl

Values = dict[str, Any]


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def first(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Values, Path]:
    """A finished study, raced, and its values; tests work on copies of both."""
    folder = tmp_path_factory.mktemp("first")
    values = {
        "name": "tiny",
        "base": {"model": str(tiny_bert)},
        "data": {"train": str(write_jsonl(folder / "rows.jsonl", rows()))},
        "task": {"kind": "classify", "max_length": 32},
        "methods": {"control": "lora", "contenders": ["ia3", "head"]},
        "method": {"ia3": {"config": {"target_modules": ["key"], "feedforward_modules": []}}},
        "budget": {"steps": 10, "batch_size": 8, "settings": 2, "seeds": 2, "validations": 2},
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
    }
    api.run(parse_spec(values), folder, folder / "out")
    return values, folder / "out"


@pytest.fixture
def values(first: tuple[Values, Path]) -> Values:
    return copy.deepcopy(first[0])


@pytest.fixture
def out(first: tuple[Values, Path], tmp_path: Path) -> Path:
    return shutil.copytree(first[1], tmp_path / "out")


def stored(out: Path, *ids: str) -> dict[str, list[Any]]:
    """Return the database's rows as they lie there, of the trials in ``ids`` or of all."""
    queries = {
        "trials": "select id, status, result from trials order by id",
        "scores": "select trial_id, split, item, score, prediction from scores order by 1, 2, 3",
        "decisions": "select trial_id, step, value from decisions order by 1, 2",
        "study": "select key, value from study where key not like 'wall:%' order by 1",
    }
    with sqlite3.connect(out / "study.db") as database:
        found = {table: list(database.execute(query)) for table, query in queries.items()}
    if ids:
        del found["study"]
        found = {table: [r for r in rows if r[0] in ids] for table, rows in found.items()}
    return found
