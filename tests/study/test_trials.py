"""Trials: what makes them the same, which seeds they use, how they travel."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.trials import ENTRIES, SPEC

from bakeoff.core.trial import Segment, Trial
from bakeoff.methods import registry
from bakeoff.study import dry_run
from bakeoff.study.planning import trials as planning_trials
from bakeoff.testing.trials import CONDITIONS


def test_id_covers_result_inputs() -> None:
    """The id covers everything that determines the result."""
    trial = Trial(ENTRIES[0], {"learning_rate": 1e-3}, 0, "search", CONDITIONS)
    prose = dataclasses.replace(ENTRIES[0], mechanism="told in other words")
    assert dataclasses.replace(trial, method=prose).id == trial.id
    for change in (
        {"seed": 1},
        {"phase": "final"},
        {"setting": {"learning_rate": 2e-3}},
        {"conditions": dataclasses.replace(CONDITIONS, steps=31)},
        {"method": dataclasses.replace(ENTRIES[0], config={"r": 4})},
    ):
        assert dataclasses.replace(trial, **change).id != trial.id
    assert re.fullmatch("[0-9a-f]{12}", trial.id)


def test_replicates_try_all_settings() -> None:
    """Every replicate of a method tries its whole grid at a seed of its own."""
    seeds = planning_trials.replicate_seeds(SPEC, 2)
    assert seeds == (8, 9)
    trials = planning_trials.replicate_trials(SPEC, ENTRIES, seeds, CONDITIONS)
    assert len({t.id for t in trials}) == len(trials) == 18
    assert {t.phase for t in trials} == {"replicate"}
    rates: dict[tuple[str, int], list[float]] = {(t.method.name, t.seed): [] for t in trials}
    for trial in trials:
        rates[trial.method.name, trial.seed].append(trial.learning_rate)
    assert all(rates[m, 8] == rates[m, 9] and len(rates[m, 8]) == 3 for m, _ in rates)


def test_segment_json_roundtrip() -> None:
    """A segment survives its way to a worker."""
    (segment,) = planning_trials.build_segments(
        [Trial(ENTRIES[0], {"learning_rate": 1e-3, "r": 4}, 0, "search", CONDITIONS)],
        (3, 30), "f", "b", {"lora": {"token_bytes": 2.5}}, None,
    )  # fmt: skip
    assert segment.engine == {"token_bytes": 2.5}
    back = Segment.from_json(segment.to_json())
    assert back == segment
    assert back.trials[0].id == segment.trials[0].id
    assert back.trials[0].config["r"] == 4
    assert (back.start, back.stop) == (3, 30)


def test_groups_uniform_and_bounded() -> None:
    """Groups hold one method and one shape, and no more lanes than allowed."""

    def a_trial(method: int, rate: float, **more: int) -> Trial:
        return Trial(ENTRIES[method], {"learning_rate": rate, **more}, 0, "search", CONDITIONS)

    trials = [
        a_trial(0, 1e-3), a_trial(1, 1e-3), a_trial(0, 2e-3), a_trial(0, 1e-3, r=4),
        a_trial(0, 4e-3),
    ]  # fmt: skip
    whole = [[trials.index(t) for t in g] for g in planning_trials.group_trials(trials, None)]
    assert whole == [[0, 2, 4], [1], [3]]
    by_two = [[trials.index(t) for t in g] for g in planning_trials.group_trials(trials, 2)]
    assert by_two == [[0, 2], [4], [1], [3]]


@pytest.mark.parametrize("kind", ["sft", "classify"])
def test_plan_describes_serving(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan says how each method can be served.

    Fault 44: before anything is trained, of what says a next token.
    """
    monkeypatch.setenv("BAKEOFF_CACHE", str(tmp_path))
    names = ("lora", "dora", "prompt_tuning", "full")
    study: Any = SimpleNamespace(
        spec=SimpleNamespace(task=SimpleNamespace(kind=kind)),
        entries=[registry.load(n, Path()) for n in names],
        conditions=CONDITIONS,
    )
    served = {m["method"]: m["vllm"] for m in dry_run._method_plans(study, [])}
    assert set(served) == set(names)
    if kind == "classify":
        assert set(served.values()) == {None}
    else:
        assert (served["lora"], served["prompt_tuning"]) == ("adapter", None)
        assert served["dora"] in ("converted", "merged"), "vLLM reads no DoRA"
