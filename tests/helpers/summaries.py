"""Summaries of hand-made records, held against the report's schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

import bakeoff.report
from bakeoff.analysis.summary import summarise
from bakeoff.core.record import StudyRecord
from helpers.records import hits

SCHEMA = json.loads((Path(bakeoff.report.__file__).parent / "schema.json").read_text())


def summarise_checked(record: StudyRecord) -> dict[str, Any]:
    """Summarise, and hold whatever record to the schema and to plain JSON on the way."""
    made = summarise(record, np.random.default_rng(0))
    jsonschema.validate(made, SCHEMA)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert [m["method"] for m in made["methods"]][:1] == [record.control]
    assert sorted(m["method"] for m in made["methods"]) == sorted(record.methods)
    return made


def row(made: dict[str, Any], method: str) -> dict[str, Any]:
    return next(m for m in made["methods"] if m["method"] == method)


def accuracy_scores(
    right: int, n_items: int = 200, seeds: tuple[int, ...] = (1, 2, 3)
) -> dict[int, Any]:
    return {seed: hits(right, n_items) for seed in seeds}
