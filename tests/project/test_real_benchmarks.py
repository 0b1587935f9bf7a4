"""The benchmarks that run real studies, on a tiny one: what they count, and that they resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bakeoff.analysis.bootstrap import Scores
from bakeoff.core.errors import BakeoffError
from bakeoff.study.config import parse_spec


def test_self_comparison_finds_no_difference(
    script: Callable[[str], ModuleType], study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method compared with itself shows no difference."""
    folder, out = study_file.with_suffix(""), study_file.with_suffix(".json")
    arguments = ["--runs", "1", "--steps", "3", "--study", str(study_file)]
    arguments += ["--folder", str(folder), "--out", str(out)]
    assert script("null").main(arguments) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    (run,) = found["runs"]
    assert run["identical"]
    assert run["difference"]["estimate"] == 0
    assert run["verdict"] == "none"  # three steps teach nothing
    assert len(run["test_scores"]) == 2
    assert run["setting"] == run["twin_setting"]
    assert found["pairs"] == []
    totals = found["totals"]["twins"]
    assert (totals["of"], totals["false"], totals["identical"]) == (1, 0, 1)
    assert totals["high"] == pytest.approx(0.975)
    assert "to the bit" in capsys.readouterr().out
    trained = [p.stat().st_mtime_ns for p in sorted(folder.glob("*/trials/*/adapter/*"))]
    assert script("null").main(arguments) == 0
    again = [p.stat().st_mtime_ns for p in sorted(folder.glob("*/trials/*/adapter/*"))]
    assert trained
    assert again == trained  # resumed: nothing is trained a second time


def test_differing_methods_counted(script: Callable[[str], ModuleType]) -> None:
    """Different methods that get a verdict are counted."""
    null, rng = script("null"), np.random.default_rng(1)
    spec = parse_spec(_plain())
    runs = [
        null.Run(seed, _scores(rng, share, seed), {"learning_rate": rate}, {**_row(), "seed": seed})
        for seed, share, rate in ((0, 0.6, 1.0), (100, 0.6, 1.0), (200, 0.9, 2.0))
    ]
    found = null.summary(runs, spec, "higher")
    means = [run.scores.values.mean() for run in runs]
    assert found["pairs"][0]["estimate"] == pytest.approx(means[1] - means[0])
    totals = found["totals"]
    assert totals["strangers"]["false"] == 2
    assert totals["strangers"]["verdicts"]["better"] == 2
    assert totals["all_pairs"]["of"] == 3
    alike = totals["all_pairs_same_setting"]
    assert (alike["of"], alike["false"]) == (1, 0)
    assert totals["strangers"]["low"] == pytest.approx(0.0943, abs=1e-3)  # 2 of 3, exact
    assert null.total([{"verdict": "inconclusive"}] * 20)["high"] == pytest.approx(0.168, abs=1e-3)
    assert null.ring(20)[:2] == [(0, 1), (0, 19)]
    assert len(null.ring(20)) == 20
    assert null.ring(2) == [(0, 1)]  # the same pair reversed is not a second one


def test_different_twin_refused(
    script: Callable[[str], ModuleType], study_values: dict[str, Any], tmp_path: Path
) -> None:
    """A twin that is another method is refused."""
    null, spec = script("null"), parse_spec(study_values)
    made = null.twins(spec, tmp_path, tmp_path)
    assert made.method["twin"].config == {
        "r": 8, "lora_alpha": "2 * r", "lora_dropout": 0.0, "target_modules": "all-linear"
    }  # fmt: skip
    values = made.model_dump()
    values["method"]["twin"]["config"] |= {"r": 4}
    with pytest.raises(BakeoffError, match="differs from lora in config"):
        null.refuse_difference(parse_spec(values), tmp_path)


def test_racing_compared_with_full_study(
    script: Callable[[str], ModuleType], study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Racing is compared with the full study."""
    out = study_file.with_suffix(".json")
    arguments = ["--study", str(study_file), "--steps", "10", "--out", str(out)]
    arguments += ["--folder", str(study_file.with_suffix(""))]
    assert script("race_real").main(arguments) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    # 2 methods x 2 settings: all 10 steps; raced, 4 to step 1, their better ones on to step 3
    assert found["full"]["steps"] == {"search": 40, "final": 40, "total": 80}
    raced = found["raced"]["steps"]
    assert raced["search"] in (8, 10, 12)
    assert raced["total"] == raced["search"] + raced["final"]
    ratio = found["contrast"]["times_fewer_steps"]["total"]
    assert ratio == pytest.approx(80 / raced["total"])
    held = found["contrast"]
    for method, same in held["same_setting"].items():
        if same:
            assert held["score_raced_less_full"][method] == 0
    assert set(found["full"]["methods"]) == {"lora", "ia3"}
    assert "| total | 80 |" in capsys.readouterr().out


def test_stopped_front_methods_named(
    script: Callable[[str], ModuleType],
) -> None:
    """Methods of the front that racing stopped are named."""
    score = {"estimate": 0.5}
    row = {"setting": {"learning_rate": 1.0}, "score": score, "verdict": "inconclusive"}
    full = {
        "steps": {"search": 40, "final": 40, "total": 80},
        "wall_seconds": 8.0,
        "best": "ia3",
        "recommended": "lora",
        "front": ["ia3", "lora"],
        "methods": {"lora": row, "ia3": row},
    }
    raced = {
        **full,
        "steps": {"search": 10, "final": 20, "total": 30},
        "wall_seconds": 4.0,
        "best": "lora",
        "methods_stopped": ["ia3"],
        "methods": {"lora": row, "ia3": {**row, "score": None}},
    }
    held = script("race_real").contrast(raced, full)
    assert held["front_methods_stopped"] == ["ia3"]
    assert held["best_stopped"] is True
    assert held["same_best"] is False
    assert held["times_fewer_steps"] == {"search": 4.0, "final": 2.0, "total": 80 / 30}
    assert held["times_less_wall"] == 2.0
    assert list(held["same_setting"]) == ["lora"]


def _plain() -> dict[str, Any]:
    return {
        "name": "x",
        "base": {"model": "m"},
        "data": {"train": "t"},
        "task": {"kind": "classify"},
        "methods": {"contenders": ["ia3"]},
    }


def _scores(rng: np.random.Generator, share: float, seed: int) -> Scores:
    values = (rng.random((3, 400)) < share).astype(float)
    return Scores((seed + 1, seed + 2, seed + 3), values)


def _row() -> dict[str, Any]:
    return {"verdict": "equivalent", "identical": True}
