"""A study whose budget is in hours, run for real on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.study.config import parse_spec, read_spec
from bakeoff.study.planning.time_budget import Deadline
from bakeoff.study.scheduler import OUT_OF_TIME

HOURS = 0.2
"""More than it takes: three passes over these few rows, at six seeds, are seconds."""


@pytest.fixture
def timed_values(study_values: dict[str, Any]) -> dict[str, Any]:
    study_values["budget"] = {
        "hours": HOURS,
        "batch_size": 8,
        "settings": 2,
        "validations": 2,
        "most": 6,
    }
    return study_values


def test_hours_choose_the_budget_once(timed_values: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    report = api.run(parse_spec(timed_values), tmp_path, out)
    bought = report["hours"]
    assert report["complete"] is True
    assert (bought["hours"], bought["settings"], bought["dropped"]) == (HOURS, 2, [])
    assert bought["looks"] == [5, 6]  # with one contender the first look is at five
    assert bought["seeds"] == 6
    assert bought["contenders"] == ["ia3"]
    assert report["study"]["steps"] == bought["final_steps"] == bought["steps"]
    assert bought["used"] > 0
    assert {m["n_seeds"] for m in report["methods"]} <= set(bought["looks"])
    assert {t.conditions.steps for t, _ in api.read_trials(out)} == {bought["steps"]}
    assert "hours bought" not in (out / "study.toml").read_text()
    assert "have been used so far" in (out / "report.html").read_text()
    before = {t.id: r for t, r in api.read_trials(out)}
    log = (out / "log.jsonl").read_text()
    # both the user's file and the resolved one go on where it stopped: at the end
    api.run(parse_spec(timed_values), tmp_path, out)
    api.run(read_spec(out / "study.toml"), out, out)
    assert {t.id: r for t, r in api.read_trials(out)} == before
    events = [json.loads(line) for line in (out / "log.jsonl").read_text()[len(log) :].splitlines()]
    assert not [e for e in events if e["event"] == "advance"]
    for change in ({"hours": 2 * HOURS}, {"steps": 40}):
        timed_values["budget"] = {
            "batch_size": 8,
            "settings": 2,
            "validations": 2,
            "most": 6,
            **change,
        }
        with pytest.raises(BakeoffError) as refused:
            api.run(parse_spec(timed_values), tmp_path, out)
        assert refused.value.code == "study-differs"


def test_late_trials_not_started(
    timed_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that cannot end in time are not started."""
    monkeypatch.setattr(Deadline, "allows", lambda _, __: False)
    report = api.run(parse_spec(timed_values), tmp_path, tmp_path / "study")
    lora, ia3 = report["methods"]
    assert (lora["status"], lora["verdict"]) == ("done", "control")
    assert (ia3["status"], ia3["reason"], ia3["verdict"]) == ("stopped", OUT_OF_TIME, "none")
    assert report["complete"] is True
    assert ia3["n_seeds"] == 0
    assert lora["artifact"] is None  # nor is there time to load its weights again


def test_insufficient_hours_train_nothing(timed_values: dict[str, Any], tmp_path: Path) -> None:
    """Insufficient hours train nothing."""
    timed_values["budget"]["hours"] = 1e-6
    with pytest.raises(BakeoffError) as refused:
        api.run(parse_spec(timed_values), tmp_path, tmp_path / "study")
    assert (refused.value.code, refused.value.exit_code) == ("hours-too-few", 3)
    assert not (tmp_path / "study" / "trials").exists()


def test_plan_says_what_hours_buy(timed_values: dict[str, Any], tmp_path: Path) -> None:
    found = api.overview(parse_spec(timed_values), tmp_path)
    assert found["hours"]["hours"] == HOURS
    assert tuple(found["looks"]) == found["hours"]["looks"]
    assert found["estimate"]["seconds"] <= HOURS * 3600
    assert found["steps_raced"] <= found["steps"]
    prices = [found["price"][key] for key in ("first", "expected", "most")]
    assert prices[0]["runs"] <= prices[1]["runs"] <= prices[2]["runs"]
    assert prices[2]["seconds"] == pytest.approx(found["estimate"]["seconds"])
    assert found["promise"]["last"]["detectable"] == found["detectable"]
