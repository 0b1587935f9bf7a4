"""The test set is read once: a further look is asked for, trains only what is new, is counted."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w
from helpers.report_fixture import HOSTILE, report
from helpers.study_runs import (
    SCHEMA,
    RecordingProgress,
    Values,
    run_validated,
    stored_rows,
    study_values,
    use_inline_executor,
)

from bakeoff import api, cli
from bakeoff.core.errors import BakeoffError, PreflightError
from bakeoff.report import render
from bakeoff.study import replicates
from bakeoff.study.config import parse_spec
from bakeoff.study.setup import test_reads
from bakeoff.testing.tiny import rows, write_jsonl
from bakeoff.training import segment


@pytest.fixture(scope="module", autouse=True)
def probes_in_this_process() -> Iterator[None]:
    """Run cost probes here: their numbers do not matter, and starting processes takes long."""
    with pytest.MonkeyPatch.context() as patch:
        use_inline_executor(patch)
        yield


@pytest.fixture(scope="module")
def first(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Values, Path]:
    """A finished study, raced, and its values; tests work on copies of both."""
    folder = tmp_path_factory.mktemp("first")
    data = {"train": write_jsonl(folder / "rows.jsonl", rows())}
    values = study_values(tiny_bert, data, ["ia3", "head"]) | {
        "method": {"ia3": {"config": {"target_modules": ["key"], "feedforward_modules": []}}}
    }
    api.run(parse_spec(values), folder, folder / "out")
    return values, folder / "out"


@pytest.fixture
def values(first: tuple[Values, Path]) -> Values:
    return copy.deepcopy(first[0])


@pytest.fixture
def out(first: tuple[Values, Path], tmp_path: Path) -> Path:
    return shutil.copytree(first[1], tmp_path / "out")


def refuse_run(values: Values, out: Path, again: bool = False) -> BakeoffError:
    before = stored_rows(out)
    with pytest.raises(PreflightError) as error:
        run_validated(values, out, again=again)
    assert stored_rows(out) == before
    return error.value


def ids_of(out: Path) -> list[str]:
    return [t.id for t, _ in api.read_trials(out)]


def methods_of(made: dict[str, Any]) -> set[str]:
    return {m["method"] for m in made["methods"]}


def more_seeds(values: Values) -> None:
    values["budget"]["seeds"] = 3


def one_more(values: Values) -> None:
    values["methods"]["contenders"].insert(0, "ln_tuning")


def one_less(values: Values) -> None:
    values["methods"]["contenders"] = ["head"]
    del values["method"]


def other_margin(values: Values) -> None:
    values["task"]["margin"] = 0.05


ALLOWED = {
    more_seeds: "budget.seeds: 2 -> 3",
    one_more: "methods.contenders: ia3, head -> ln_tuning, ia3, head",
    one_less: "methods.contenders: ia3, head -> head",
    other_margin: "task.margin: 0.02 -> 0.05",
}


def test_single_run_counts_once(values: Values, out: Path) -> None:
    """A study that is run once has one test-set evaluation."""
    study = api.report(out)["study"]
    assert (study["test_looks"], study["test_changes"]) == (1, [])
    assert "the test set was evaluated once" in (out / "report.html").read_text()
    values["verdict"] = {"prefer": "memory"}
    study = run_validated(values, out)["study"]
    assert (study["test_looks"], study["test_changes"]) == (1, [])


@pytest.mark.parametrize("change", ALLOWED, ids=lambda c: c.__name__)
def test_change_after_evaluation_refused(
    values: Values, out: Path, trained: list[str], change: Any
) -> None:
    """A change after the test set was evaluated is refused."""
    change(values)
    error = refuse_run(values, out)
    assert (error.code, error.exit_code) == ("test-already-read", 3)
    assert f"\n  {ALLOWED[change]}" in error.cause
    assert "`--again`" in error.try_
    assert trained == []


def test_further_evaluation_trains_new_only(values: Values, out: Path, trained: list[str]) -> None:
    """A further evaluation trains only what is new and is counted."""
    old = ids_of(out)
    before, states = (
        stored_rows(out, *old),
        {p: p.stat().st_mtime_ns for p in (out / "trials").rglob("*")},
    )
    more_seeds(values)
    one_more(values)
    made = run_validated(values, out, again=True)
    assert made["complete"] is True
    assert {m["n_seeds"] for m in made["methods"]} == {3}
    assert methods_of(made) == {"lora", "ia3", "head", "ln_tuning"}
    assert not set(trained) & set(old)
    new = {t.id: t for t, _ in api.read_trials(out) if t.id not in old}
    assert set(trained) == set(new)
    assert {(t.method.name, t.seed) for t in new.values() if t.method.name != "ln_tuning"} == {
        ("lora", 3), ("ia3", 3), ("head", 3),
    }  # fmt: skip
    assert stored_rows(out, *old) == before
    assert {p: p.stat().st_mtime_ns for p in states if p.parent.name != "trials"} == {
        p: t for p, t in states.items() if p.parent.name != "trials"
    }
    study = made["study"]
    assert study["test_looks"] == 2
    (look,) = study["test_changes"]
    assert look["changes"] == [
        "budget.seeds: 2 -> 3",
        "methods.contenders: ia3, head -> ln_tuning, ia3, head",
    ]
    assert look["at"].endswith("+00:00")
    warning = next(w for w in made["warnings"] if "evaluated 2 times" in w)
    assert "budget.seeds: 2 -> 3" in warning
    assert "reserve" in warning
    assert "the test set was evaluated 2 times" in (out / "report.html").read_text()

    trained.clear()
    repeated = run_validated(values, out)
    assert (repeated["study"], trained) == (study, [])


def test_changed_margin_trains_nothing(values: Values, out: Path, trained: list[str]) -> None:
    """A changed margin trains nothing."""
    other_margin(values)
    made = run_validated(values, out, again=True)
    assert trained == []
    assert (made["study"]["margin"], made["study"]["test_looks"]) == (0.05, 2)
    assert api.report(out)["study"] == made["study"]
    assert refuse_run(values | {"task": {**values["task"], "margin": 0.02}}, out).cause.endswith(
        "task.margin: 0.05 -> 0.02"
    )


def test_removed_contender_returns_unchanged(values: Values, out: Path, trained: list[str]) -> None:
    """A removed contender keeps its trials and returns unchanged."""
    whole, old = copy.deepcopy(values), ids_of(out)
    before = stored_rows(out, *old)
    one_less(values)
    made = run_validated(values, out, again=True)
    assert methods_of(made) == {"lora", "head"}
    assert made["complete"] is True
    assert {d["method"] for d in made["race"]["decisions"]} == {"lora", "head"}
    other = copy.deepcopy(whole)
    other["method"]["ia3"]["config"]["target_modules"] = ["query"]
    error = refuse_run(other, out, again=True)
    assert error.code == "study-differs"
    assert "spec.method.ia3.config.target_modules: key -> query" in error.cause
    back = run_validated(whole, out, again=True)
    assert methods_of(back) == {"lora", "ia3", "head"}
    assert back["study"]["test_looks"] == 3
    assert trained == []
    assert stored_rows(out, *old) == before


def other_steps(values: Values) -> None:
    values["budget"]["steps"] = 12


def fewer_seeds(values: Values) -> None:
    values["budget"]["seeds"] = 1


def other_arguments(values: Values) -> None:
    values["method"]["ia3"]["config"]["target_modules"] = ["query"]


def other_rates(values: Values) -> None:
    values["method"]["lora"] = {"learning_rates": [1e-3, 1e-2]}


def other_control(values: Values) -> None:
    values["methods"] = {"control": "ia3", "contenders": ["lora", "head"]}


def other_order(values: Values) -> None:
    values["methods"]["contenders"] = ["head", "ia3"]


NEVER = (other_steps, fewer_seeds, other_arguments, other_rates, other_control, other_order)


@pytest.mark.parametrize("change", NEVER, ids=lambda c: c.__name__)
def test_invalidating_change_refused(
    values: Values, out: Path, trained: list[str], change: Any
) -> None:
    """A change that would invalidate trials is refused even then."""
    change(values)
    other_margin(values)
    for again in (False, True):
        error = refuse_run(values, out, again)
        assert error.code == "study-differs"
        assert "task.margin" not in error.cause, "it names what no look may change, alone"
    assert trained == []


def test_change_before_evaluation(values: Values, out: Path) -> None:
    """Before the test set is evaluated, a change makes another study."""
    with sqlite3.connect(out / "study.db") as database:
        database.execute("delete from scores where split = 'test'")
        database.execute("update trials set status = null, result = null")
        database.execute("delete from looks")
    study = api.report(out)["study"]
    assert (study["test_looks"], study["test_changes"]) == (0, [])
    assert "the test set has not been evaluated yet" in (out / "report.html").read_text()
    more_seeds(values)
    for again in (False, True):
        error = refuse_run(values, out, again)
        assert error.code == "study-differs"
        assert "spec.budget.seeds: 2 -> 3" in error.cause


def test_interrupted_evaluation_resumes_once(
    values: Values, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted evaluation resumes as the same one, with the same numbers."""
    values["budget"]["seeds"] = 4
    whole = shutil.copytree(out, tmp_path / "whole")
    run_validated(values, whole, again=True)
    run = segment.run

    def stops_midway(value: dict[str, Any]) -> dict[str, Any]:
        if value["trials"][0]["method"]["name"] == "ia3":
            raise KeyboardInterrupt
        return run(value)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "run", stops_midway)
        with pytest.raises(KeyboardInterrupt):
            run_validated(values, out, again=True)
    made = run_validated(values, out)
    assert made["study"]["test_looks"] == 2
    assert made["complete"] is True
    results = [{t.id: r.splits for t, r in api.read_trials(f) if r} for f in (out, whole)]
    assert results[0] == results[1]


def test_refused_evaluation_not_counted(values: Values, out: Path) -> None:
    """An evaluation that is refused before training is not counted."""
    values["methods"]["contenders"].append("oft")
    values["method"]["oft"] = {"config": {"target_modules": ["no_such_layer"]}}
    assert refuse_run(values, out, again=True).code == "target-modules-not-found"
    values["method"]["oft"]["config"]["target_modules"] = ["query"]
    made = run_validated(values, out, again=True)
    assert "oft" in methods_of(made)
    assert made["study"]["test_looks"] == 2


def test_racing_decisions_kept(
    values: Values, out: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    """Racing decisions are kept in a further evaluation."""
    before, decide = stored_rows(out), replicates.racing.decide_rung

    def contrary(*given: Any) -> Any:
        return tuple(dataclasses.replace(d, goes_on=not d.goes_on) for d in decide(*given))

    monkeypatch.setattr(replicates.racing, "decide_rung", contrary)
    run_validated(values, out)
    after = stored_rows(out)
    assert trained == []
    assert {t: after[t] for t in ("trials", "scores", "decisions")} == {
        t: before[t] for t in ("trials", "scores", "decisions")
    }


def test_nothing_new_reported(values: Values, out: Path) -> None:
    """A further evaluation with nothing new is reported."""
    progress = RecordingProgress()
    api.run(parse_spec(values), out, out, progress, again=True)
    assert test_reads.NO_CHANGE_MESSAGE in progress.lines
    assert api.report(out)["study"]["test_looks"] == 1
    assert test_reads.check_test_read({}, {}, test_read=False, again=True) == {}


def test_command_line_requires_again(
    values: Values,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command line requires `--again`."""
    other_margin(values)
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def bakeoff(*options: str) -> tuple[Any, str, str]:
        command = ["bakeoff", "run", str(tmp_path / "study.toml"), "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, " ".join(said.err.split())

    code, _, err = bakeoff()
    assert code == 3
    assert "[test-already-read]" in err
    assert "task.margin: 0.02 -> 0.05" in err
    assert "Try: `--again` to evaluate on the test set once more" in err
    code, made, _ = bakeoff("--again", "--json")
    assert code == 0
    assert json.loads(made)["study"]["test_looks"] == 2
    code, _, err = bakeoff("--again")
    assert code == 0
    assert test_reads.NO_CHANGE_MESSAGE in err
    assert "The test set was evaluated 2 times." in err


def test_page_escapes_changes() -> None:
    """The page shows changes as text."""
    made = report()
    made["study"] |= {
        "test_looks": 2,
        "test_changes": [{"at": HOSTILE[0], "changes": [HOSTILE[1], "budget.seeds: 2 -> 3"]}],
    }
    jsonschema.validate(made, SCHEMA)
    page = render(made)
    assert "the test set was evaluated 2 times" in page
    assert "budget.seeds: 2 -&gt; 3" in page
    assert HOSTILE[1] not in page
