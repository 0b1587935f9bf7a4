"""The shipped home-assistant data: what it promises, and that the script still makes it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from bakeoff.data import assets
from bakeoff.data.checks import near_duplicates

SPLITS = ("train", "validation", "test")
REPO = Path(__file__).parents[2]


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict[str, str]]]:
    folder = assets.prepare("home-assistant-intents", quiet)
    return {
        split: [
            json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
        ]
        for split in SPLITS
    }


def by_value(data: dict[str, list[dict[str, str]]], column: str) -> dict[str, set[str]]:
    """Return value of a column -> the splits that it occurs in."""
    found: dict[str, set[str]] = defaultdict(set)
    for split, rows in data.items():
        for row in rows:
            found[row[column]].add(split)
    return found


def test_split_sizes(data: dict[str, list[dict[str, str]]]) -> None:
    """The data has the documented sizes."""
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 1600,
        "validation": 400,
        "test": 800,
    }
    folder = assets.locate("home-assistant-intents")
    assert folder is not None
    assert sum(f.stat().st_size for f in folder.iterdir()) < 1_500_000


@pytest.mark.parametrize("column", ["template", "text"])
def test_splits_share_no_template_or_text(
    data: dict[str, list[dict[str, str]]], column: str
) -> None:
    """No template and no text is in two splits."""
    assert [v for v, splits in by_value(data, column).items() if len(splits) > 1] == []


def test_each_text_occurs_once(data: dict[str, list[dict[str, str]]]) -> None:
    texts = [row["text"] for rows in data.values() for row in rows]
    assert len(texts) == len(set(texts))


def test_every_intent_is_in_every_split(data: dict[str, list[dict[str, str]]]) -> None:
    intents = by_value(data, "intent")
    assert len(intents) == 41
    assert all(splits == set(SPLITS) for splits in intents.values())
    topics = {(row["topic"], row["intent"]) for row in data["train"]}
    assert len({topic for topic, _ in topics}) == 15
    assert len(topics) == 41  # one topic for each intent
    counts = Counter(row["intent"] for row in data["train"])
    assert max(counts.values()) <= 46
    assert sum(n >= 45 for n in counts.values()) >= 30  # balanced, but for intents of few wordings


@pytest.mark.parametrize(("split", "most", "fewest"), [("test", 3, 440), ("validation", 4, 190)])
def test_evaluated_splits_have_many_templates_of_few_rows(
    data: dict[str, list[dict[str, str]]], split: str, most: int, fewest: int
) -> None:
    """Rows of a template are answered alike: test and validation have few of each."""
    counts = Counter(row["template"] for row in data[split])
    assert max(counts.values()) <= most
    assert len(counts) >= fewest


@pytest.mark.parametrize(
    ("split", "other"), [("test", "train"), ("validation", "train"), ("test", "validation")]
)
def test_splits_share_no_near_duplicate(
    data: dict[str, list[dict[str, str]]], split: str, other: str
) -> None:
    """The study's own warning of near-duplicates has nothing to say about this data."""
    texts = [[row["text"] for row in data[name]] for name in (other, split)]
    assert near_duplicates.find_near_duplicates(*texts).pairs == []


def test_json_compact_and_matches_intent(data: dict[str, list[dict[str, str]]]) -> None:
    """The JSON is compact and agrees with the intent."""
    for rows in data.values():
        for row in rows:
            assert set(row) == {"text", "topic", "intent", "json", "template"}
            record = json.loads(row["json"])
            assert record["intent"] == row["intent"] == row["template"].split("/")[0]
            assert next(iter(record)) == "intent"
            assert json.dumps(record, separators=(",", ":")) == row["json"]


def test_json_words_occur_in_text(data: dict[str, list[dict[str, str]]]) -> None:
    """The words of the JSON occur in the text."""
    spoken = ("name", "area", "floor", "item", "message", "search_query", "conversation_command")
    for row in (r for rows in data.values() for r in rows):
        record = json.loads(row["json"])
        for value in (record[slot] for slot in spoken if slot in record):
            assert re.search(rf"\b{re.escape(value)}\b", row["text"]), row


def test_text_is_clean(data: dict[str, list[dict[str, str]]]) -> None:
    odd = re.compile(
        r"^\s|\s$|\s\s|[{}<>\[\]|()\x00-\x1f]| [%°.,]|\b(\w+) \1\b"
        r"|\b(the|my) (the|my)\b|\b1 (hours|minutes|seconds)\b|\d degree\b"
    )
    assert [r["text"] for rows in data.values() for r in rows if odd.search(r["text"])] == []


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("home_assistant_intents", reason="the grammar's package is not installed")
    path = REPO / "scripts" / "make_home_assistant.py"
    spec = importlib.util.spec_from_file_location("make_home_assistant", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_rebuilt_data_is_identical(script: Any) -> None:
    """Building the data again gives identical bytes."""
    splits = script.make(script.SEED)
    folder = assets.prepare("home-assistant-intents", quiet)
    for split, rows in splits.items():
        assert script.to_jsonl(rows) == (folder / f"{split}.jsonl").read_text(encoding="utf-8")
    assert script.readme(splits, script.SEED) == (folder / "README.md").read_text(encoding="utf-8")
    frames: dict[str, set[str]] = defaultdict(set)
    for split, rows in splits.items():
        for row in rows:
            frames[row.frame].add(split)
    assert [f for f, found in frames.items() if len(found) > 1] == []
