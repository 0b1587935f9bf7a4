"""Macro-F1: by hand, against scikit-learn, and with its interval in a report."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from helpers.records import final, make_record, make_result, make_trial
from sklearn.metrics import f1_score

from bakeoff import api
from bakeoff.analysis.per_method.secondary import macro_f1, macro_f1_influences
from bakeoff.analysis.summary import summarise
from bakeoff.data.rows import read_rows
from bakeoff.report import page
from bakeoff.study.config import parse_spec


def test_macro_f1_by_hand() -> None:
    # a: right 2, said 3, true 2: 4/5. b: right 1, said 1, true 2: 2/3. Mean 11/15.
    assert macro_f1(["a", "a", "b", "a"], ["a", "a", "b", "b"]) == pytest.approx(11 / 15)
    assert macro_f1(["a", "b"], ["a", "b"]) == 1.0
    # c is said and never true: a label all the same, with an F1 of 0
    assert macro_f1(["a", "c"], ["a", "a"]) == pytest.approx((2 / 3 + 0) / 2)


def test_macro_f1_matches_scikit_learn() -> None:
    """Macro F1 and its influence values equal those of scikit-learn."""
    rng = np.random.default_rng(3)
    true = [str(x) for x in rng.choice(["a", "b", "c", "d"], 60, p=[0.6, 0.3, 0.08, 0.02])]
    said = [str(x) for x in rng.choice(["a", "b", "c", "e"], 60)]

    def theirs(keep: list[int]) -> float:
        return float(
            f1_score([true[i] for i in keep], [said[i] for i in keep], average="macro",
                     zero_division=0)
        )  # fmt: skip

    whole = theirs(list(range(60)))
    assert macro_f1(said, true) == pytest.approx(whole)
    each = macro_f1_influences(said, true)
    assert each.mean() == pytest.approx(whole)
    without = np.array([theirs([j for j in range(60) if j != i]) for i in range(60)])
    expected = 59 * (whole - without)
    np.testing.assert_allclose(each - whole, expected - expected.mean(), atol=1e-9)


def test_interval_matches_resampling() -> None:
    """The jackknife interval is close to that of resampled items.

    One seed: the jackknife's interval against 2,000 resamples of the items.
    """
    rng = np.random.default_rng(0)
    true = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    said = np.where(rng.random(400) < 0.75, true, rng.choice(3, 400))
    names = np.array(["a", "b", "c"])
    report = summed({1: names[said].tolist()}, names[true].tolist())
    found = report["methods"][0]["secondary"]["macro_f1"]
    drawn = [
        macro_f1(names[said[i]].tolist(), names[true[i]].tolist())
        for i in (rng.integers(400, size=400) for _ in range(2000))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.15)
    assert found["low"] < found["estimate"] < found["high"]


def summed(said: dict[int, list[str]], true: list[str], **more: Any) -> dict[str, Any]:
    """Return the report of a study whose one method said this, by seed."""
    pairs = []
    for seed, answers in said.items():
        trial = make_trial("lora", seed=seed, phase="final")
        scores = [float(a == b) for a, b in zip(answers, true, strict=True)]
        result = make_result(trial, test=scores)
        split = result.splits["test"]
        result.splits["test"] = type(split)(split.scores, tuple(answers), None)
        pairs.append((trial, result))
    given = {"secondary": ("macro_f1",), "references": tuple(true), **more}
    record = make_record(pairs, ("lora", "oft"), **given)
    return summarise(record, np.random.default_rng(0))


def test_report_rows_by_method_and_trial() -> None:
    """The report has the secondary metric by method and by trial."""
    true = ["a", "a", "b", "b"]
    report = summed({1: ["a", "a", "b", "a"], 2: ["a", "a", "b", "b"]}, true)
    schema = json.loads((resources.files("bakeoff.report") / "schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(report)), schema)
    rows = {m["method"]: m for m in report["methods"]}
    assert rows["oft"]["secondary"] is None
    found = rows["lora"]["secondary"]["macro_f1"]
    assert found["estimate"] == pytest.approx((11 / 15 + 1) / 2)
    assert (found["n_items"], found["n_seeds"]) == (4, 2)
    assert [(t["seed"], t["value"]) for t in found["trials"]] == [
        (1, pytest.approx(11 / 15)), (2, 1.0),
    ]  # fmt: skip
    assert "Macro-F1" in page.render(json.loads(json.dumps(report)))


def test_task_without_secondary_metric() -> None:
    """A task without a secondary metric reports none."""
    plain = make_record(final("lora", {1: [1.0, 0.0]}), ("lora", "oft"))
    report = summarise(plain, np.random.default_rng(0))
    assert {m["method"]: m["secondary"] for m in report["methods"]} == {"lora": None, "oft": None}
    assert "Macro-F1" not in page.render(json.loads(json.dumps(report)))


def test_study_reports_stored_metric(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A study reports the secondary metric from what it stored."""
    study_values["budget"] |= {"steps": 4, "settings": 1, "race": "off", "extend": 0}
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    true = [r["label"] for r in read_rows(tmp_path / "out" / "data" / "test.jsonl")]
    results = {r.trial_id: r for _, r in api.read_trials(tmp_path / "out") if r}
    for row in report["methods"]:
        for trial in row["secondary"]["macro_f1"]["trials"]:
            said = results[trial["trial_id"]].splits["test"].predictions
            theirs = f1_score(true, list(said), average="macro", zero_division=0)
            assert trial["value"] == pytest.approx(theirs)
