"""What a setting is chosen on, loss or metric, and where the two disagree, worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.records import finished_record, make_record, make_result, make_trial

from bakeoff import api
from bakeoff.analysis.choose import (
    SelectionComparison,
    choose_settings,
    compare_selection,
    selection_value,
)
from bakeoff.analysis.summary import summarise
from bakeoff.analysis.trial_runs import TrialRun
from bakeoff.core.results import Cost, SplitScores, Status
from bakeoff.study.config import parse_spec
from bakeoff.study.planning.racing import Rules, RungStanding, decide_rung
from bakeoff.study.replicates import racing_costs


def tried(rate: float, loss: float, right: int, step: int = 100, **more: Any) -> TrialRun:
    """Return a search trial of ten validation items of which ``right`` are right."""
    trial = make_trial("lora", rate)
    scores = tuple(float(i < right) for i in range(10))
    result = make_result(trial, losses=(2.0, loss), **more)
    splits = {"validation": SplitScores(scores, ("x",) * 10, loss)}
    return TrialRun(trial, dataclasses.replace(result, splits=splits, step=step))


RUNS = [tried(1e-4, 0.9, 1), tried(1e-3, 0.5, 4), tried(1e-2, 0.6, 9)]


def test_loss_and_metric_choose_for_themselves() -> None:
    assert choose_settings(RUNS) == {"lora": {"learning_rate": 1e-3}}
    assert choose_settings(RUNS, "metric", "higher") == {"lora": {"learning_rate": 1e-2}}
    assert choose_settings(RUNS, "metric", "lower") == {"lora": {"learning_rate": 1e-4}}


def test_ties_prefer_lower_loss() -> None:
    """Equal scores are resolved in favour of the lower loss."""
    runs = [tried(1e-4, 0.9, 7), tried(1e-3, 0.5, 7), tried(1e-2, 0.6, 7)]
    assert choose_settings(runs, "metric", "higher") == {"lora": {"learning_rate": 1e-3}}


def test_criterion_direction_and_missing() -> None:
    """The criterion is lower for better trials and None where it was not measured."""
    run = tried(1e-3, 0.5, 7)
    assert selection_value(run, "loss", "higher") == 0.5
    assert selection_value(run, "metric", "higher") == pytest.approx(-0.7)
    assert selection_value(run, "metric", "lower") == pytest.approx(0.7)
    trial = make_trial("lora", 1e-3)
    bare = dataclasses.replace(make_result(trial), splits={"validation": SplitScores((), (), 0.5)})
    assert selection_value(TrialRun(trial, bare), "metric", "higher") is None
    assert choose_settings([(trial, bare)], "metric", "higher") == {}


def test_picks_use_furthest_rung() -> None:
    """Picks compare the settings that reached the furthest rung."""
    first, second, third = RUNS
    assert compare_selection(RUNS, "higher") == SelectionComparison(
        by_loss={"learning_rate": 1e-3}, by_metric={"learning_rate": 1e-2},
        agree=False, compared=3, step=100,
    )  # fmt: skip
    early = tried(1e-1, 0.1, 10, step=30, status=Status.STOPPED)
    assert compare_selection([*RUNS, early], "higher") == compare_selection(RUNS, "higher")
    assert compare_selection([first, early], "higher") is None
    assert compare_selection([first, second], "higher") == SelectionComparison(
        {"learning_rate": 1e-3}, {"learning_rate": 1e-3}, True, 2, 100
    )
    # one item of ten more is chance: a difference of 0.1 with a standard error of 0.1
    near = tried(1e-2, 0.6, 5)
    found = compare_selection([second, near], "higher")
    assert found is not None
    assert found.agree
    assert third.trial.learning_rate == 1e-2


def test_report_shows_loss_metric_disagreement() -> None:
    """The report says where loss and metric choose different settings."""
    made = summarise(make_record(RUNS, ["lora"], settings=3), np.random.default_rng(0))
    row = made["methods"][0]
    assert row["picked"]["agree"] is False
    assert row["n_settings_added"] == 0
    said = [w for w in made["warnings"] if "disagree" in w]
    assert said == [
        "LoRA: validation loss and metric disagree on the best of 3 settings at step 100: "
        "learning rate 0.001 by loss, learning rate 0.01 by metric. [selection-disagrees]"
    ]
    wider = summarise(make_record(RUNS, ["lora"], settings=2), np.random.default_rng(0))
    assert wider["methods"][0]["n_settings_added"] == 1
    assert not any(
        "disagree" in w for w in summarise(finished_record(), np.random.default_rng(0))["warnings"]
    )


def test_racing_ranks_by_score() -> None:
    """Racing ranks settings by the score where one is available."""
    losses = np.array([0.5, 0.5])
    trials = [
        RungStanding("a", "lora", 1, 1e-3, losses, -0.7),
        RungStanding("b", "lora", 1, 1e-2, losses + 0.1, -0.8),
        RungStanding("c", "lora", 1, 1e-4, None, -0.9),  # diverged: no score makes up for it
    ]
    rules = Rules(rungs=(10, 30), steps=100, contenders=1, keep=(1,))
    found = {d.trial_id: d for d in decide_rung(trials, "lora", {}, 1, rules)}
    assert [name for name, d in found.items() if d.goes_on] == ["b"]
    assert found["b"].reason == "setting 1 of 3 by validation score"
    assert found["b"].numbers["score"] == -0.8


def test_racing_axes_match_pareto() -> None:
    """Methods race on the axes of the study's Pareto front."""

    def cost(name: str, memory: int, engine: str) -> Cost:
        return Cost(
            name, Status.DONE, trainable_parameters=8, step_milliseconds=5.0,
            train_peak_bytes=memory, engine={"switches": engine},
        )  # fmt: skip

    costs = {"lora": cost("lora", 100, "a"), "ia3": cost("ia3", 90, "b")}
    assert racing_costs(costs, "lora") == {
        "lora": {"memory": 100, "speed": 5.0, "size": 8},
        # other accelerators: what they save is not the method's
        "ia3": {"memory": None, "speed": None, "size": 8},
    }
    assert racing_costs(costs, "lora", ("quality", "size"))["ia3"] == {"size": 8}
    # not known before the end: nobody can be ruled out by it
    assert racing_costs(costs, "lora", ("quality", "forgetting"))["lora"] == {"forgetting": None}


def test_generative_study_chooses_by_metric(
    study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """A study of generated answers chooses its settings by the metric."""
    study_values["base"]["model"] = str(tiny_llama)
    study_values["task"] = {"kind": "sft", "max_length": 64, "max_new_tokens": 4}
    study_values["data"]["columns"] = {"prompt": "text", "completion": "label"}
    study_values["data"]["limit"] = {"validation": 8, "test": 8}
    del study_values["method"]
    study_values["budget"] |= {"settings": 3, "seeds": 1, "extend": 0, "select_on": "metric"}
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "study")
    for method in report["methods"]:
        # at every rung each trial that stood there was scored, beside its loss
        assert all(s["validation_score"] is not None for s in method["settings"])
        ended = [s for s in method["settings"] if s["step"] == report["study"]["steps"]]
        assert method["picked"]["compared"] == len(ended)
        chosen = next(s for s in method["settings"] if s["chosen"])
        finalists = method["picked"]["by_metric"], method["picked"]["by_loss"]
        assert chosen["setting"] in finalists
    at_rung = [d for d in report["race"]["decisions"] if d["step"] < report["study"]["steps"]]
    assert all("by validation score" in d["reason"] for d in at_rung)
    assert len(at_rung) == 2 * 3
