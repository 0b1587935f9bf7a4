"""The benchmark of the output layer's rate: its rows, and what it calls a loss or a turn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def outcome(score: float, verdict: str) -> dict[str, Any]:
    return {"score": score, "setting": None, "difference": None, "verdict": verdict}


def test_rows_are_unbalanced_and_repeatable(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Half of the rows are of one topic, and every topic is in train; the same rows each time."""
    head_rate = script("head_rate")
    for name in ("a", "b"):
        head_rate.write_rows(tmp_path / name, {"train": 400}, (8, 12))
    text = (tmp_path / "a" / "train.jsonl").read_text()
    assert text == (tmp_path / "b" / "train.jsonl").read_text()
    counts = Counter(json.loads(line)["label"] for line in text.splitlines())
    assert set(counts) == set(head_rate.TOPICS)
    assert 0.4 < counts["earnings"] / 400 < 0.6


def test_losses_and_turns(script: Callable[[str], ModuleType]) -> None:
    """A method is compared with its best in the hand-made grid; a turn is from better to worse."""
    head_rate = script("head_rate")
    found = {
        "head": {"learning_rate": 0.1},
        "near": ["0.03", "0.3"],
        "grid": ["0.03", "0.1", "0.3"],
        "studies": {
            "default": {"lora": outcome(0.9, "control"), "vera": outcome(0.88, "worse")},
            "method": {"lora": outcome(0.8, "control"), "vera": outcome(0.91, "better")},
            "0.03": {"lora": outcome(0.88, "control"), "vera": outcome(0.87, "inconclusive")},
            "0.1": {"lora": outcome(0.905, "control"), "vera": outcome(0.88, "worse")},
            "0.3": {"lora": outcome(0.86, "control"), "vera": outcome(0.92, "better")},
        },
    }
    below = head_rate.losses(found)
    assert round(below["lora"], 3) == 0.005
    assert round(below["vera"], 3) == 0.04
    assert head_rate.turned(found) == ["vera"]
    assert head_rate.exit_code(found) == 1
    assert "verdicts turned: vera" in head_rate.table(found)
