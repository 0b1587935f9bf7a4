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
from bakeoff.study.planning.racing import RungStanding


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


def test_race_compared_with_full_search(
    script: Callable[[str], ModuleType], study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All settings are trained in full, and read at every step where a rung may be."""
    out = study_file.with_suffix(".json")
    arguments = ["--study", str(study_file), "--steps", "10", "--out", str(out)]
    arguments += ["--folder", str(study_file.with_suffix(""))]
    assert script("race_real").main(arguments) == 0  # of two settings both go on
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found["settings"]) == 2 * 2 * 2
    for setting in found["settings"]:
        assert list(setting["losses"]) == ["1", "2", "3", "10"]
        assert None not in setting["losses"].values()
    default = found["rules"][0]
    assert (default["replicates"], default["other_setting"]) == (4, 0)
    assert default["runs"] == pytest.approx(2.0)
    assert default["ripe"][0]["fall"] is not None
    assert "ripe rung, two to the end" in capsys.readouterr().out


def test_race_replayed_by_hand(script: Callable[[str], ModuleType]) -> None:
    """The race is replayed from the readings of all settings."""
    race_real = script("race_real")
    # of 60 steps: a rung at 6, 12 or 20; the control is ripe at 12, from 2.0 to 1.7
    losses = {
        ("lora", 1): {1e-3: (1.95, 1.80, 1.70, 1.0), 1e-2: (1.96, 1.75, 1.72, 0.9),
                      1e-1: (1.90, 1.70, 1.69, 1.4), 1.0: (9.0, 9.0, 9.0, 9.0)},
        ("oft", 1): {1e-3: (1.99, 1.90, 1.80, 0.5), 1e-2: (1.97, 1.80, 1.70, 0.6),
                     1e-1: (1.90, 1.70, 1.60, 0.7), 1.0: (9.0, 9.0, 9.0, 9.0)},
    }  # fmt: skip
    at: dict[int, dict[str, RungStanding]] = {step: {} for step in (6, 12, 20, 60)}
    for (method, seed), settings in losses.items():
        for rate, values in settings.items():
            for step, loss in zip(at, values, strict=True):
                name = f"{method}@{rate:g}"
                items = np.array([loss, loss])
                at[step][name] = RungStanding(name, method, seed, rate, items)
    readings = race_real.Readings(at, {1: np.array([2.0, 2.0])}, "lora", 60)
    found = race_real.compare(readings, race_real.DEFAULT)
    assert found["rungs"] == (12,)
    assert [r["fall"] for r in found["ripe"]] == pytest.approx([0.05, 0.15])
    assert [r["ripe"] for r in found["ripe"]] == [False, True]
    # four settings to step 12, two of them to step 60
    assert found["runs"] == pytest.approx((4 * 12 + 2 * 48) / 60)
    # oft's best setting at the end, 0.001, is third at step 12
    assert (found["other_setting"], found["replicates"]) == (1, 2)
    assert [(c["full"], c["raced"]) for c in found["chosen"]] == [(0.01, 0.01), (0.001, 0.01)]
    assert found["above_full"][0] == pytest.approx((0.0 + 0.1) / 2)
    assert race_real.exit_code({"rules": [found]}) == 1
    early = race_real.compare(readings, race_real.Rule("", (3,), ripe=False))
    assert (early["rungs"], early["other_setting"]) == ((6,), 0)
    assert race_real.exit_code({"rules": [early]}) == 0


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
