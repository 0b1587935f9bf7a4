"""The benchmarks that run real studies, on a tiny one: what they count, and that they resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bakeoff.core.errors import BakeoffError
from bakeoff.study.config import parse_spec
from bakeoff.study.planning.racing import RungStanding


def test_self_comparison_finds_no_difference(
    script: Callable[[str], ModuleType], study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method compared with itself shows no difference, and finished studies are not repeated."""
    folder, out = study_file.with_suffix(""), study_file.with_suffix(".json")
    arguments = ["--runs", "1", "--replicates", "2", "--steps", "3", "--study", str(study_file)]
    arguments += ["--folder", str(folder), "--out", str(out)]
    assert script("null").main(arguments) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    (run,) = found["runs"]
    assert run["identical"]
    assert run["difference"]["estimate"] == 0
    assert run["verdict"] == "none"  # three steps teach nothing
    assert len(run["test_scores"]) == len(run["rates"]) == 2
    assert run["rates"] == run["twin_rates"]
    assert found["pairs"] == []
    totals = found["totals"]["twins"]
    assert (totals["of"], totals["false"], totals["identical"]) == (1, 0, 1)
    assert totals["high"] == pytest.approx(0.975)
    assert "to the bit" in capsys.readouterr().out
    shutil.rmtree(folder / "seed-0")  # its file of scores is enough
    assert script("null").main(arguments) == 0
    assert not (folder / "seed-0").exists()
    assert json.loads(out.read_text(encoding="utf-8"))["runs"] == [run]
    assert script("null").main([*arguments, "--rates", "1e-3"]) == 1
    assert "[null-differs]" in capsys.readouterr().err


def test_no_study_started_after_deadline(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Past the deadline no further study is started."""
    null = script("null")
    assert null.finish(null.Job(parse_spec(_plain()), tmp_path, tmp_path, 0.0)) is None


def test_false_verdicts_counted(script: Callable[[str], ModuleType]) -> None:
    """Two studies of other scores give a false verdict, two of the same population do not."""
    null, rng = script("null"), np.random.default_rng(1)
    plan = null.plan_rounds(8, 0.03, "higher")
    assert plan.looks == (5, 8)
    runs = [_study(null, rng, share, i) for i, share in enumerate((0.6, 0.6, 0.9, 0.6))]
    found = null.summary(runs, plan)
    means = [run.scores.values[:5].mean() for run in runs]
    assert [(row["first"], row["second"]) for row in found["pairs"]] == [(0, 1), (2, 3)]
    assert found["pairs"][1]["estimate"] == pytest.approx(means[3] - means[2])
    assert found["pairs"][1]["replicates"] == 5
    totals = found["totals"]
    assert totals["strangers"]["false"] == 1
    assert totals["strangers"]["verdicts"]["worse"] == 1
    assert (totals["all_pairs"]["of"], totals["all_pairs"]["false"]) == (6, 3)
    assert list(found["passed"].values()) == [True, True, False, False]
    assert null.total([{"verdict": "inconclusive"}] * 20)["high"] == pytest.approx(0.168, abs=1e-3)


def test_variance_ratio_by_hand(script: Callable[[str], ModuleType]) -> None:
    """F is the variance between studies over what the spread of replicates explains."""
    null = script("null")
    runs = [_study(null, None, values, 0) for values in ([[0.0], [0.2]], [[0.4], [0.6]])]
    found = null.variance_ratio(runs)
    # within: 0.02; the means 0.1 and 0.5 have variance 0.08, times 2 replicates
    assert found["F"] == pytest.approx(8)
    assert found["p"] == pytest.approx(1 - (8 / (8 + 2)) ** 0.5)  # F with 1 and 2 df
    assert found["between_sd"] == pytest.approx(0.08**0.5)
    assert found["within_sd"] == pytest.approx(0.02**0.5)
    same = [_study(null, None, [[0.5], [0.5]], 0)] * 2
    assert null.variance_ratio(same)["F"] == 1


def test_different_twin_refused(
    script: Callable[[str], ModuleType], study_values: dict[str, Any], tmp_path: Path
) -> None:
    """A twin that is another method is refused."""
    null, spec = script("null"), parse_spec(study_values)
    made = null.twins(spec, tmp_path, tmp_path)
    assert made.method["twin"].config == {
        "r": 32, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"
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


def _study(
    null: ModuleType, rng: np.random.Generator | None, given: float | list[list[float]], seed: int
) -> Any:
    """Return a study from its file: of these scores, or of 8 x 400 with this share of ones."""
    drawn = given if rng is None else (rng.random((8, 400)) < given).astype(float).tolist()
    row = {"verdict": "equivalent", "identical": True, "seed": seed}
    return null.load({"values": drawn, "groups": None, "row": row})
