"""Nothing acknowledged is lost: kill -9, run again, and the numbers are the same to the bit."""

from __future__ import annotations

import copy
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from filelock import FileLock
from helpers.command import Started, bakeoff
from helpers.resume import comparable

from bakeoff import api
from bakeoff.core.errors import LockedError, PreflightError
from bakeoff.study import replicates
from bakeoff.study.config import parse_spec
from bakeoff.study.setup import compatibility


def finished(out: Path) -> int:
    try:
        return sum(result is not None for _, result in api.read_trials(out))
    except Exception:
        return 0


def test_kill_loses_one_trial_at_most(study_values: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 loses at most the running trial."""
    study_values["engine"]["executor"] = "process"
    study_values["budget"]["steps"] = 20
    whole = api.run(parse_spec(study_values), tmp_path, tmp_path / "whole")
    study, out = tmp_path / "study.toml", tmp_path / "killed"
    study.write_text(tomli_w.dumps(study_values))
    arguments = ("run", str(study), "--out", str(out))
    kept = 0
    for target in (1, 3, 6):
        process = Started(*arguments, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while finished(out) < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.signal_all(signal.SIGKILL)
        process.end()
        now = finished(out)
        assert now >= max(target, kept), "a finished trial was lost"
        kept = now
    done = bakeoff(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert comparable(json.loads(done.stdout)) == comparable(json.loads(json.dumps(whole)))


@pytest.mark.parametrize("race", ["on", "off"])
def test_racing_saves_steps_and_decisions(
    study_values: dict[str, Any], tmp_path: Path, race: str
) -> None:
    """Racing saves steps and records its decisions."""
    # two settings go on from a rung at which the control has begun to learn, else three
    study_values["budget"] |= {"steps": 20, "settings": 4, "race": race, "extend": 0}
    api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    trials = api.read_trials(tmp_path / "out")
    steps: dict[tuple[str, int], list[int]] = {}
    for trial, result in trials:
        assert result is not None
        assert result.step is not None
        steps.setdefault((trial.method.name, trial.seed), []).append(result.step)
    assert sorted(steps) == [("ia3", 1), ("ia3", 2), ("lora", 1), ("lora", 2)]
    scored = [(t.method.name, t.seed) for t, r in trials if r and "test" in r.splits]
    assert sorted(scored) == sorted(steps), "one setting of each replicate is scored on test"
    if race == "off":
        assert set(map(tuple, steps.values())) == {(20, 20, 20, 20)}
        return
    (rung,) = api.report(tmp_path / "out")["race"]["rungs"]
    assert {tuple(sorted(s)) for s in steps.values()} == {(rung, 20, 20, 20)}
    assert not list((tmp_path / "out").rglob("*.safetensors.tmp"))
    assert not list((tmp_path / "out" / "trials").glob("*/state/*")), "no state is left over"


def test_finished_study_trains_nothing(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A finished study that is run again trains nothing."""
    spec = parse_spec(study_values)
    first = api.run(spec, tmp_path, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "trials").rglob("*")}
    again = api.run(spec, tmp_path, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "trials").rglob("*")} == before
    assert comparable(again) == comparable(first)
    resolved = tmp_path / "out" / "study.toml"
    third = api.run(api.read_spec(resolved), resolved.parent, tmp_path / "out")
    assert comparable(third) == comparable(first)


def test_changed_spec_refused_with_difference(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Another spec in the same folder is refused with the difference."""
    api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    changed = copy.deepcopy(study_values)
    changed["budget"]["steps"] = 7
    with pytest.raises(PreflightError) as error:
        api.run(parse_spec(changed), tmp_path, tmp_path / "out")
    assert error.value.code == "study-differs"
    assert "spec.budget.steps: 6 -> 7" in error.value.cause
    lines = Path(study_values["data"]["train"]).read_text().splitlines(keepends=True)
    Path(study_values["data"]["train"]).write_text("".join(lines[1:]))
    with pytest.raises(PreflightError) as error:
        api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert "data.train: " in error.value.cause


def test_concurrent_runs_refused(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Two concurrent runs of one study are refused."""
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(LockedError) as error:
        api.run(parse_spec(study_values), tmp_path, out)
    assert (error.value.code, error.value.exit_code) == ("study-locked", 5)


def test_interrupted_study_report(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted study has a valid report."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replicates, "_choose_finalists", stop)
    with pytest.raises(KeyboardInterrupt):
        api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    report = api.report(tmp_path / "out")
    assert report["complete"] is False
    assert [m["score"] for m in report["methods"]] == [None, None]
    assert all(len(m["settings"]) == 4 for m in report["methods"]), "two in each replicate"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_replayed_racing_adds_nothing(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Racing records its decisions, and a replay adds none."""
    study_values["budget"] |= {"steps": 20, "settings": 4, "tune": "all", "seeds": 1, "extend": 0}
    out = tmp_path / "out"
    report = api.run(parse_spec(study_values), tmp_path, out)
    settings = {m["method"]: [s["setting"] for s in m["settings"]] for m in report["methods"]}
    assert all(len(s) == 4 for s in settings.values()), "every method gets the same number"
    assert any("r" in s for s in settings["lora"]), "more than the rate is tuned"
    race = report["race"]
    (rung,) = race["rungs"]
    first = [d for d in race["decisions"] if d["step"] == rung and d["method"] == "lora"]
    kept = 2 if race["first_rung"]["ripe"] else 3
    goes_on = [d["goes_on"] for d in sorted(first, key=lambda d: d["mean_loss"])]
    assert goes_on == [True] * kept + [False] * (4 - kept)
    last = [d for d in race["decisions"] if d["step"] == 20 and d["method"] == "lora"]
    assert [d["goes_on"] for d in sorted(last, key=lambda d: d["mean_loss"])] == [
        True, *[False] * (kept - 1)
    ]  # fmt: skip
    assert race["steps_trained"] < race["steps_in_full"]
    before = (out / "log.jsonl").read_text().count('"event": "advance"')
    again = api.run(parse_spec(study_values), tmp_path, out)
    assert (out / "log.jsonl").read_text().count('"event": "advance"') == before
    assert again["race"] == race


def test_changed_environment_reported() -> None:
    """Other versions and other hardware are reported.

    Fault 28: numbers of another torch, or another GPU, are not those of this study.
    """
    machine = {"device": "cuda:0", "hardware": "H100", "versions": {"torch": "2.9.0", "peft": "1"}}
    other = {"device": "cuda:0", "hardware": "L4", "versions": {"torch": "2.11.0", "peft": "1"}}
    compatibility.check_unchanged({"machine": machine}, {"machine": copy.deepcopy(machine)})
    with pytest.raises(PreflightError) as error:
        compatibility.check_unchanged({"machine": machine}, {"machine": other})
    assert (error.value.code, error.value.exit_code) == ("study-differs", 3)
    assert "machine.hardware: H100 -> L4" in error.value.cause
    assert "machine.versions.torch: 2.9.0 -> 2.11.0" in error.value.cause
    assert "peft" not in error.value.cause
    assert "`--fork NEW`" in error.value.try_
