"""The output layer's learning rate in a study: tuned once, stored, the same for every method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from helpers.executors import StandIns, current_factory, use_executors
from helpers.study_runs import RecordingProgress

from bakeoff import api
from bakeoff.core import jobs
from bakeoff.core.errors import UsageError
from bakeoff.study.config import parse_spec
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.trials import initial_settings
from bakeoff.study.record import read_trials, read_values
from bakeoff.study.setup import compatibility, defaults, saved_rate
from bakeoff.study.setup.methods import load_methods
from bakeoff.testing.trials import make_trial

TUNED = {
    "learning_rate": 3e-2,
    "grid": [
        {"learning_rate": 1e-2, "loss": 0.9},
        {"learning_rate": 3e-2, "loss": 0.7},
        {"learning_rate": 1e-1, "loss": None},
    ],
}


@pytest.fixture
def tunings(costs_are_known: StandIns, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The requests to tune the head, which are answered without training."""
    requests: list[dict[str, Any]] = []

    def tune(value: dict[str, Any]) -> dict[str, Any]:
        requests.append(value)
        return TUNED

    use_executors(monkeypatch, StandIns(current_factory(), {jobs.TUNE_HEAD: tune}))
    return requests


def untuned(values: dict[str, Any], rate: float | str | None = None) -> dict[str, Any]:
    task = {k: v for k, v in values["task"].items() if k != "head_learning_rate"}
    return {**values, "task": task if rate is None else {**task, "head_learning_rate": rate}}


def test_rate_is_tuned_once(
    study_values: dict[str, Any], tmp_path: Path, tunings: list[dict[str, Any]]
) -> None:
    """All methods have the tuned rate; a resumed study and a fork keep it."""
    spec, out = parse_spec(untuned(study_values)), tmp_path / "out"
    progress = RecordingProgress()
    api.run(spec, tmp_path, out, progress)
    (request,) = tunings
    assert request["trials"][0]["method"]["name"] == "head"
    values, trials = read_values(out), read_trials(out)
    assert values["head"] == {**TUNED, "source": "tuned"}
    assert values["spec"]["task"]["head_learning_rate"] == 3e-2
    assert {t.conditions.head_learning_rate for t, _ in trials} == {3e-2}
    note = values["about"]["provenance"]["chosen"]["head_learning_rate"]
    assert note.startswith("3e-2: of the new output layer in every method; tuned on that layer")
    assert any(line.endswith(note) for line in progress.lines)

    api.run(spec, tmp_path, out)
    assert len(tunings) == 1
    assert [t.id for t, _ in read_trials(out)] == [t.id for t, _ in trials]
    api.run(spec, tmp_path, out, fork=tmp_path / "fork")
    assert len(tunings) == 1
    assert read_values(tmp_path / "fork")["head"] == values["head"]


@pytest.mark.parametrize(("stated", "rate"), [(0.5, 0.5), ("method", None)])
def test_stated_rate_is_not_tuned(
    stated: float | str,
    rate: float | None,
    study_values: dict[str, Any],
    tmp_path: Path,
    tunings: list[dict[str, Any]],
) -> None:
    """A number is used as it is; `method` leaves the head at each method's own rate."""
    api.run(parse_spec(untuned(study_values, stated)), tmp_path, tmp_path / "out")
    assert not tunings
    assert {t.conditions.head_learning_rate for t, _ in read_trials(tmp_path / "out")} == {rate}
    source = "given" if rate else "method"
    assert read_values(tmp_path / "out")["head"] == {
        "learning_rate": rate,
        "source": source,
        "grid": [],
    }


def test_older_study_keeps_its_rate(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study from before this default has no rate of its own for the head, and gets none."""
    spec = parse_spec(untuned(study_values))
    frozen = compatibility.comparable_spec(spec)
    monkeypatch.setattr(defaults, "frozen_values", lambda _: {"spec": frozen})
    restored = defaults.restore_choices(spec, tmp_path, RecordingProgress())
    assert restored.task.head_learning_rate == "method"
    assert compatibility.comparable_spec(restored)["task"] == frozen["task"]


def test_joint_search(study_values: dict[str, Any], tmp_path: Path) -> None:
    """`joint` adds a factor on the head's rate to every method's space, but to `head`'s."""
    values = untuned(study_values, "joint")
    with pytest.raises(UsageError, match='"joint" needs budget.tune = "all"'):
        parse_spec(values)
    values["budget"] |= {"tune": "all", "settings": 6}
    values["methods"] = {"control": "ia3", "contenders": ["head"]}
    spec = parse_spec(values)
    ia3, head = load_methods(spec, tmp_path)
    assert 1.0 in ia3.tuning["head_factor"]["values"]
    assert not head.tuning
    settings = initial_settings(ia3, spec)
    assert len({s.get("head_factor", 1.0) for s in settings}) > 1


def test_factors_train_in_lanes() -> None:
    """Settings that differ in the head's rate only have the same shapes: one group."""
    trial = make_trial("lora", "classify", head_learning_rate=0.1)
    group = [
        dataclasses.replace(trial, setting={**trial.setting, "head_factor": f}) for f in (1, 3)
    ]
    assert len(list(planning_trials.group_trials(group, None))) == 1


def test_head_is_checked_after_rounds(
    study_values: dict[str, Any], tmp_path: Path, costs_are_known: StandIns
) -> None:
    """Control and contender are trained at other rates of the head, and leave no trials behind."""
    values = {**study_values, "verdict": {"check_head": True}}
    out = tmp_path / "out"
    report = api.run(parse_spec(values), tmp_path, out)
    checked = read_values(out)["head"]["checked"]
    assert [round(s["factor"], 2) for s in checked["ia3"]] == [0.33, 3.0]
    assert report["head"] == {
        "learning_rate": 1e-2,
        "source": "given",
        "grid": [],
        "sensitive": [],
    }
    assert not [t for t, _ in read_trials(out) if "head_factor" in t.setting]
    assert not list(out.glob("trials/*head*"))
    api.run(parse_spec(values), tmp_path, out)
    assert read_values(out)["head"]["checked"] == checked


def test_saved_modules_get_rate_of_full(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A method with `modules_to_save` gives the study a rate for them; others change nothing."""
    spec = parse_spec(study_values)
    entries = load_methods(spec, tmp_path)
    choices = defaults.Choices(spec, {})
    assert saved_rate.set_saved_rate(choices, entries, None, started=False) is choices
    config = {**entries[0].config, "modules_to_save": ["embeddings"]}
    saving = (dataclasses.replace(entries[0], config=config), *entries[1:])
    changed = saved_rate.set_saved_rate(choices, saving, 7_000_000_000, started=False)
    assert changed.spec.task.saved_learning_rate == 2e-5
    assert changed.notes["saved_learning_rate"].startswith("2e-5: of the modules of the base")
    stated = choices._replace(spec=defaults.with_task(spec, saved_learning_rate="method"))
    assert saved_rate.set_saved_rate(stated, saving, None, started=False) is stated
    assert saved_rate.set_saved_rate(choices, saving, None, started=True) is choices
