"""A study folder for the live view, written row by row: nothing is trained, all text is given."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.results import SplitScores, TrialResult
from bakeoff.core.trial import Conditions, Trial
from bakeoff.study.config import dump_spec, parse_spec
from bakeoff.study.storage.database import Writer
from bakeoff.testing.trials import CONDITIONS as BENCH
from helpers.records import TITLES, make_cost, make_entry, make_result

METHODS = ("lora", "oft", "ia3")
SEEDS = (1, 2, 3)
RIGHT = {"lora": 70, "oft": 100, "ia3": 55}
"""How many of the test items each method gets right, whatever the seed."""
ITEMS = 120
CONDITIONS = dataclasses.replace(
    BENCH, steps=100, validations=2, metric="exact_match", task="sft",
    task_options={"columns": {"prompt": "Say: {text} now", "completion": "{answer}"}},
)  # fmt: skip


class Texts:
    """What strangers wrote, everywhere at once; plain unless told otherwise."""

    def __init__(self, hostile: Sequence[str] = ()) -> None:
        self.hostile = hostile

    def of(self, kind: str, number: int) -> str:
        """Return the text number ``number`` of a kind."""
        more = f" {self.hostile[number % len(self.hostile)]}" if self.hostile else ""
        return f"{kind} {number}{more}"


PLAIN = Texts()


def lines(texts: Texts) -> str:
    """Return the frozen test rows."""
    rows = [
        {"text": texts.of("question", i), "answer": texts.of("answer", i)} for i in range(ITEMS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def conditions(texts: Texts) -> Conditions:
    digest = hashlib.sha256(lines(texts).encode()).hexdigest()
    return dataclasses.replace(CONDITIONS, data={"test": digest})


def search_trials(rate: float = 1e-3, texts: Texts = PLAIN) -> list[Trial]:
    return [
        Trial(make_entry(m), {"learning_rate": r}, 0, "search", conditions(texts))
        for m in METHODS
        for r in (rate, rate * 3)
    ]


def final_trials(rate: float = 1e-3, texts: Texts = PLAIN) -> list[Trial]:
    return [
        Trial(make_entry(m), {"learning_rate": rate}, s, "final", conditions(texts))
        for m in METHODS
        for s in SEEDS
    ]


def final_result(trial: Trial, texts: Texts) -> TrialResult:
    """Return a final trial's result: the first so many items are right, and what was said."""
    name = trial.method.name
    right = RIGHT[name] + trial.seed
    scores = tuple(float(i < right) for i in range(ITEMS))
    said = tuple(
        texts.of("answer", i) if s else f"{texts.of(f'{name} guess', i)}, seed {trial.seed}"
        for i, s in enumerate(scores)
    )
    found = make_result(trial)
    splits = {**found.splits, "test": SplitScores(scores, said, 0.5)}
    return dataclasses.replace(found, splits=splits)


def values(name: str, texts: Texts) -> dict[str, Any]:
    spec = parse_spec(
        {
            "name": name,
            "base": {"model": "somebody/tiny"},
            "data": {"train": "rows.jsonl"},
            "task": {"kind": "sft", "margin": 0.02},
            "methods": {"control": METHODS[0], "contenders": list(METHODS[1:])},
            "budget": {"steps": 100, "settings": 2, "seeds": 3, "extend": 0},
            "verdict": {"pareto": ["quality", "memory", "speed", "size"]},
        }
    )
    titles = {m: TITLES[m] for m in METHODS}
    if texts.hostile:
        titles = {m: f"{title} {texts.hostile[i]}" for i, (m, title) in enumerate(titles.items())}
    about = {
        "secondary": [], "references": [], "base_note": None, "titles": titles,
        "metric": {
            "name": "exact_match", "better": "higher", "unit": "fraction", "low": 0.0, "high": 1.0,
        },
        "methods": list(METHODS),
        "n_items": {"train": 200, "validation": 2, "test": ITEMS},
        "warnings": [texts.of("warning", i) for i in range(len(texts.hostile) or 1)],
        "sizes": None,
        "provenance": {"versions": {"bakeoff": "0.1.0"}, "device": "cpu", "hardware": "a machine",
                       "precision": "fp32", "threads": 1, "data": {}},
    }  # fmt: skip
    frozen = {
        "spec": dump_spec(spec), "data": {"test": "aa"}, "base": "b1",
        "machine": {"device": "cpu"}, "methods": {m: {"config": {}} for m in METHODS},
    }  # fmt: skip
    return {"spec": dump_spec(spec), "about": about, "frozen": frozen, "wall:1": 12.0}


def write_study(
    folder: Path,
    name: str = "small",
    hostile: Sequence[str] = (),
    finals: bool = True,
    failure: str | None = None,
) -> Path:
    """Write a study: searched, and its final trials run unless ``finals`` is off."""
    texts = Texts(hostile)
    folder.mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "test.jsonl").write_text(lines(texts), encoding="utf-8")
    with Writer(folder / "study.db") as store:
        store.set_all(values(name, texts))
        store.add_trials(search_trials(texts=texts))
        for m in METHODS:
            store.save_cost(make_cost(m))
        store.save_group([make_result(t, reason=failure) for t in search_trials(texts=texts)])
        store.add_trials(final_trials(texts=texts))
        if finals:
            store.save_group([final_result(t, texts) for t in final_trials(texts=texts)])
    events = [
        {"event": "phase", "title": "Final", "total": 9, "done": 0},
        {"event": "say", "text": texts.of("said", 0)},
    ]
    time = "2026-01-01T00:00:00+00:00"
    log = "".join(json.dumps({"time": time, **e}) + "\n" for e in events)
    (folder / "log.jsonl").write_text(log, encoding="utf-8")
    return folder
