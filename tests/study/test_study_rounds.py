"""Rounds: replicates are added to the open contenders, and every look is final."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.resume import comparable
from helpers.study_runs import Killed, Values, run_validated, study_values

from bakeoff import api
from bakeoff.analysis.rounds.look import Look
from bakeoff.core.results import Cost, Status
from bakeoff.study import record, rounds, run
from bakeoff.study.config import parse_spec
from bakeoff.study.config.budget import BudgetSpec
from bakeoff.study.planning.rounds import are_lanes_free, planned_looks
from bakeoff.study.storage.database import Reader
from bakeoff.testing.tiny import rows, write_jsonl

pytestmark = pytest.mark.usefixtures("costs_are_known")
CONTENDERS = ["ln_tuning", "bitfit", "head"]


@pytest.fixture(scope="module")
def whole(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Values, dict[str, Any], Path]:
    """A study of three contenders in two rounds: its values, report and folder."""
    folder = tmp_path_factory.mktemp("rounds")
    data = {"train": write_jsonl(folder / "rows.jsonl", rows())}
    values = study_values(
        tiny_bert, data, CONTENDERS, steps=6, settings=1, seeds="rounds", most=4, validations=1
    ) | {"method": {"head": {"learning_rates": [1e-6]}}}
    values["budget"]["extend"] = 0
    return values, run_validated(values, folder / "out"), folder / "out"


def looks_of(out: Path) -> list[dict[str, Any]]:
    with Reader(out / "study.db") as reader:
        return reader.looks("planned")


def replicates_of(out: Path) -> dict[str, int]:
    """Return how many replicates of each method were scored on test."""
    counts: dict[str, int] = {}
    for trial, result in api.read_trials(out):
        if result is not None and "test" in result.splits:
            counts[trial.method.name] = counts.get(trial.method.name, 0) + 1
    return counts


@pytest.mark.parametrize(
    ("budget", "contenders", "free", "looks"),
    [
        ({}, 1, False, (5, 8)),
        ({}, 2, True, (5, 8, 12, 16)),
        ({}, 3, False, (3, 5, 8)),
        ({}, 7, True, (3, 5, 8, 12, 16)),
        ({"most": 10}, 3, True, (3, 5, 8, 10)),
        ({"most": 4}, 1, True, (4,)),
        ({"seeds": 5}, 7, True, (5,)),
    ],
)
def test_planned_looks(
    budget: dict[str, Any], contenders: int, free: bool, looks: tuple[int, ...]
) -> None:
    """Looks are at 3 (5 with few contenders), 5, 8, 12 and 16 replicates, up to the most."""
    assert planned_looks(BudgetSpec(**budget), contenders, free) == looks


@pytest.mark.parametrize(
    ("ratio", "lanes", "free"),
    [(2.9, 16, True), (3.0, 16, False), (2.9, None, True), (1.4, 8, True), (1.4, 4, False),
     (None, None, False)],
)  # fmt: skip
def test_free_lanes_count_steps_of_16(ratio: float | None, lanes: int | None, free: bool) -> None:
    """Where fewer than 16 lanes share a step, 16 take several steps."""
    cost = Cost("lora", Status.DONE, lanes_ratio=ratio, lanes_timed=lanes)
    assert are_lanes_free(cost) is free
    assert cost.lanes_factor(1) == 1
    assert cost.lanes_factor(lanes or 5) == pytest.approx(ratio if ratio and lanes else lanes or 5)
    assert not are_lanes_free(None)


@pytest.mark.parametrize(
    ("device", "budget", "engine", "lanes"),
    [
        ("cuda", {}, {}, 16),
        ("cpu", {}, {}, 1),
        ("cuda", {}, {"lanes": 4}, 4),
        ("cuda", {"seeds": 3, "settings": 2}, {}, 6),
        ("cuda", {"settings": 1, "most": 5}, {}, 5),
    ],
)
def test_probe_times_the_largest_group(
    device: str, budget: dict[str, Any], engine: dict[str, Any], lanes: int
) -> None:
    """The cost probe times as many lanes as the study's largest group has."""
    value = {
        "name": "lanes", "base": {"model": "somewhere"}, "data": {"train": "rows.jsonl"},
        "task": {"kind": "classify"}, "methods": {"control": "lora", "contenders": ["full"]},
        "budget": {"steps": 10, "settings": 3, **budget}, "engine": engine,
    }  # fmt: skip
    study: Any = SimpleNamespace(
        spec=parse_spec(value), machine={"device": device}, entries=("lora", "full")
    )
    assert run._probed_lanes(study) == lanes


def test_looks_recomputed_to_the_bit(whole: tuple[Values, dict[str, Any], Path]) -> None:
    """The stored scores give the stored looks again, in another process's JSON, too."""
    _, report, out = whole
    stored = looks_of(out)
    assert stored
    for number in range(1, len(stored) + 1):
        computed = record.compute_looks(out, number)
        assert [json.loads(json.dumps(look.to_json())) for look in computed] == stored[:number]
    assert report["rounds"]["planned"] == [3, 4]
    assert [f.code for f in api.diagnose(out) if f.what == "looks"] == ["looks"]


def test_only_open_contenders_go_on(whole: tuple[Values, dict[str, Any], Path]) -> None:
    """A contender with a verdict gets no further replicate; the control goes on with the rest."""
    _, report, out = whole
    counts, looks = replicates_of(out), [Look.from_json(v) for v in looks_of(out)]
    for name in CONTENDERS:
        last = next(n for n, look in enumerate(looks, 1) if name not in look.still_open)
        assert counts[name] == report["rounds"]["planned"][last - 1]
    assert counts["lora"] == looks[-1].replicates
    rows_by_method = {m["method"]: m for m in report["methods"]}
    for name in CONTENDERS:
        difference = rows_by_method[name]["difference"]
        assert difference["replicates"] == counts[name]
        assert len(rows_by_method[name]["seeds"]) == counts[name]


@pytest.mark.parametrize("when", ["before the look", "after the look"])
def test_kill_around_look_changes_nothing(
    whole: tuple[Values, dict[str, Any], Path], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill beside the first look leaves a study that ends with the same looks and numbers."""
    values, report, folder = whole
    out = folder.with_name(when.split()[0])
    values = copy.deepcopy(values)
    take = rounds._take_look

    def killed(context: Any, number: int) -> bool:
        if when == "after the look":
            take(context, number)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(rounds, "_take_look", killed)
        with pytest.raises(Killed):
            run_validated(values, out)
    assert len(looks_of(out)) == (when == "after the look")
    resumed = run_validated(values, out)
    assert looks_of(out) == looks_of(folder)
    assert comparable(resumed) == comparable(report)
    assert resumed["complete"] is True
