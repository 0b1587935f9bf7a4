"""Studies that tests run in this process: their values, listeners, a stand-in for `kill -9`."""

from __future__ import annotations

import json
import sqlite3
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bakeoff import api
from bakeoff.study.config import parse_spec
from bakeoff.study.monitoring.progress import Progress
from helpers.executors import make_inline, use_executors

SCHEMA = json.loads(resources.files("bakeoff.report").joinpath("schema.json").read_text())
"""The schema of report.json."""
Values = dict[str, Any]
"""A study file as Python values."""


class Killed(BaseException):
    """Stands for `kill -9`: nothing in bakeoff catches it."""


def raise_killed(*_: object) -> None:
    raise Killed


class RecordingProgress(Progress):
    """Records the messages of a study."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def use_inline_executor(patch: pytest.MonkeyPatch) -> None:
    """Let `api.run` do everything in this process, cost probes included."""
    use_executors(patch, make_inline)


def study_values(base: Path, data: dict[str, Path], contenders: list[str], **budget: Any) -> Values:
    """Return a study of LoRA and contenders that trains in seconds."""
    return {
        "name": "tiny",
        "base": {"model": str(base)},
        "data": {split: str(path) for split, path in data.items()},
        "task": {"kind": "classify", "max_length": 32, "head_learning_rate": 1e-2},
        "methods": {"control": "lora", "contenders": contenders},
        "budget": {
            "steps": 10, "batch_size": 8, "settings": 2, "seeds": 2, "validations": 2, **budget,
        },
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
        "verdict": {"check_head": False},
    }  # fmt: skip


def run_validated(
    values: Values, out: Path, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """Run a study whose data is in its folder; validate the report against its schema."""
    report = api.run(parse_spec(values), out, out, progress, **options)
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)
    return report


def stored_rows(out: Path, *ids: str) -> dict[str, list[Any]]:
    """Return the rows of the database, of the trials in ``ids`` or of all."""
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
