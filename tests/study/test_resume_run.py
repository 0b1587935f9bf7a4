"""`bakeoff run` after any interruption: what is finished is taken from its folder, not trained."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers.resume import comparable
from helpers.study_runs import Killed, raise_killed, use_inline_executor

from bakeoff import api
from bakeoff.core import trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import TrialResult
from bakeoff.engine import profiling
from bakeoff.study import replicates
from bakeoff.study.config import parse_spec
from bakeoff.study.storage import repair
from bakeoff.study.storage.database import Reader, Writer

BUDGET = {"steps": 20, "settings": 3, "seeds": 2, "extend": 0}


def scored(out: Path) -> dict[str, str]:
    """Return the methods of the trials that were scored on test, by id."""
    trials = api.read_trials(out)
    return {t.id: t.method.name for t, r in trials if r is not None and "test" in r.splits}


def seals(out: Path) -> dict[str, str | None]:
    return {p.name: trial_dir.manifest_hash(p) for p in (out / "trials").iterdir()}


def test_kill_before_row_loses_nothing(
    study_values: dict[str, Any],
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill between a trial's folder and its row loses nothing.

    Fault 3: a finished trial whose row is missing is not trained again, its folder stays.
    """
    study_values["budget"] |= BUDGET
    spec, out = parse_spec(study_values), tmp_path / "out"
    whole = api.run(spec, tmp_path, tmp_path / "whole")
    keep = Writer.save_group

    def killed(store: Writer, results: Sequence[TrialResult]) -> None:
        if any("test" in result.splits for result in results):
            raise Killed
        keep(store, results)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "save_group", killed)
        with pytest.raises(Killed):
            api.run(spec, tmp_path, out)
    before = seals(out)
    there = {i for i in scored(tmp_path / "whole") if before.get(i)}
    assert len(there) == 2, "a group of two seeds has its folders, and no row"
    leftover = out / "trials" / min(there) / ".tmpAbC123"
    leftover.write_bytes(b"what safetensors left when it was killed")
    trained.clear()
    report = api.run(spec, tmp_path, out)
    assert not there & set(trained), "what was finished was trained again"
    assert len(set(trained)) == 2, "the other method's two seeds"
    assert {i: seals(out)[i] for i in there} == {i: before[i] for i in there}
    assert not leftover.exists()
    assert comparable(report) == comparable(whole)
    assert {f.state for f in api.diagnose(out)} == {"ok"}
    assert "its row was missing" in (out / "log.jsonl").read_text()


def test_scored_folder_survives_retraining(
    study_values: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    """A scored folder keeps its weights when its group is trained again.

    Fault 3: weights whose scores are in the database are not written over for a neighbour.
    """
    study_values["methods"]["contenders"] = ["ia3"]
    study_values["budget"] |= BUDGET
    spec, out = parse_spec(study_values), tmp_path / "out"
    api.run(spec, tmp_path, out)
    lost, neighbour = [i for i, method in scored(out).items() if method == "lora"]
    with closing(sqlite3.connect(out / "study.db")) as db:
        db.execute(f"DELETE FROM scores WHERE trial_id = '{lost}'")
        db.execute(f"UPDATE trials SET status = NULL, result = NULL WHERE id = '{lost}'")
        db.commit()
    (out / "trials" / lost / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    kept = [p for p in (out / "trials" / neighbour).rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in kept}
    trained.clear()
    api.run(spec, tmp_path, out)
    assert neighbour in trained, "the group is trained as a whole"
    assert {p: p.stat().st_mtime_ns for p in kept} == before
    assert {f.state for f in api.diagnose(out)} == {"ok"}


def test_torn_checkpoint_restarts_trial(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn checkpoint makes its trial start over.

    Fault 2: with the same numbers in the end, and no trial that failed of it.
    """
    study_values["budget"] |= BUDGET
    spec, out = parse_spec(study_values), tmp_path / "out"
    whole = api.run(spec, tmp_path, tmp_path / "whole")

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(replicates, "_apply_rung", killed)
        with pytest.raises(Killed):
            api.run(spec, tmp_path, out)
    states = sorted((out / "trials").glob("*/state/*.safetensors"))
    states[0].write_bytes(states[0].read_bytes()[:-8])
    states[-1].unlink()
    assert {f.code for f in api.diagnose(out) if f.state == "bad"} == {"state-torn"}
    resumed, expected = comparable(api.run(spec, tmp_path, out)), comparable(whole)
    # a trial that starts over has no reading at the rungs that were tried before the one taken
    for method in (*resumed["methods"], *expected["methods"]):
        del method["curves"], method["stability"]
    assert resumed == expected
    assert not list((out / "trials").glob("*/state/*"))


def test_lost_database_rebuilt(
    study_values: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    """A study continues after its database was lost.

    Fault 25: rebuilt from the folders, no final trial trained again, and the report says so.
    """
    study_values["budget"] |= BUDGET
    spec, out = parse_spec(study_values), tmp_path / "out"
    whole = api.run(spec, tmp_path, out)
    finals = scored(out)
    before = {i: seals(out)[i] for i in finals}
    (out / "study.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(EnvironmentProblem, match="database-damaged"):
        api.run(spec, tmp_path, out)
    api.diagnose(out, repair=True)
    trained.clear()
    report = api.run(spec, tmp_path, out)
    assert {i: seals(out)[i] for i in finals} == before, "what was scored is not written again"
    assert any("database was damaged" in w for w in report.pop("warnings"))
    assert comparable(report) == comparable({k: v for k, v in whole.items() if k != "warnings"})
    with Reader(out / "study.db") as reader:
        assert reader.integrity_problems() == []
    assert json.loads((out / "report.json").read_text())["complete"] is True
    assert repair.diagnose(out, repair=True)[0].state == "ok"


def test_moved_study_resumes(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that was moved resumes and reports.

    Fault 31: under another name, from another folder, without the files that it was made of.
    """
    monkeypatch.setattr(profiling, "TIMED_STEPS", 1)
    use_inline_executor(monkeypatch)
    study_values["budget"] |= {"steps": 4, "settings": 2, "seeds": 1, "race": "off"}

    with monkeypatch.context() as patched:
        patched.setattr(replicates, "_choose_finalists", raise_killed)
        with pytest.raises(Killed):
            api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    moved = tmp_path / "elsewhere" / "another name"
    moved.parent.mkdir()
    (tmp_path / "out").rename(moved)
    Path(study_values["data"]["train"]).unlink()
    monkeypatch.chdir(moved.parent)
    there = Path("another name")
    report = api.run(api.read_spec(there / "study.toml"), there, there)
    assert report["complete"] is True
    assert api.report(there) == report
    assert {f.state for f in api.diagnose(there)} == {"ok"}
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["elsewhere"]
