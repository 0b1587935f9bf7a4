"""`bakeoff run --fork`: a study begun anew knows its parent, takes what holds, counts all looks."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w
from helpers import kills
from helpers.report_fixture import HOSTILE
from helpers.report_fixture import report as made_report
from helpers.study_runs import (
    SCHEMA,
    Killed,
    RecordingProgress,
    Values,
    raise_killed,
    study_values,
)

from bakeoff import api, cli
from bakeoff.core import files, trial_dir
from bakeoff.core.errors import PreflightError, UsageError
from bakeoff.core.results import Status, TrialResult
from bakeoff.report import render
from bakeoff.study import fork as study_fork
from bakeoff.study import replicates, rounds
from bakeoff.study.config import parse_spec, read_spec
from bakeoff.study.monitoring import progress
from bakeoff.study.storage import lock
from bakeoff.study.storage.database import Writer
from bakeoff.testing.tiny import rows, write_jsonl

pytestmark = pytest.mark.usefixtures("costs_are_known")


@pytest.fixture(scope="module")
def first(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Values, Path]:
    """A finished study whose test set was read; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("first")
    data = {
        "train": write_jsonl(folder / "rows.jsonl", [*rows()[::4], *rows()[1::4]]),
        "test": write_jsonl(folder / "test.jsonl", rows()[2::4]),
    }
    values = study_values(tiny_bert, data, ["ln_tuning"], race="off")
    api.run(parse_spec(values), folder, folder / "tiny")
    return values, folder / "tiny"


@pytest.fixture
def values(first: tuple[Values, Path]) -> Values:
    return copy.deepcopy(first[0])


@pytest.fixture
def parent(first: tuple[Values, Path], tmp_path: Path) -> Path:
    return shutil.copytree(first[1], tmp_path / "tiny")


def fork(
    values: Values, parent: Path, new: Path, heard: RecordingProgress | None = None, **asked: Any
) -> dict[str, Any]:
    """Fork a study, and hold its parent to be untouched, its report to its schema."""
    before = everything(parent)
    made = api.run(parse_spec(values), parent, parent, heard, fork=new, **asked)
    assert everything(parent) == before
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)
    return made


def go_on(new: Path, heard: RecordingProgress | None = None) -> dict[str, Any]:
    """Run a fork as `bakeoff run NEW` does: by what its own folder says, without a flag."""
    return api.run(read_spec(new / "study.toml"), new, new, heard)


def everything(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return each file and folder with its time and bytes.

    Left out is what SQLite's readers share among themselves, and a log of theirs without a byte.
    """
    found = {
        p.relative_to(folder).as_posix(): (
            (p.lstat().st_mtime_ns, p.read_bytes()) if p.is_file() else (0, None)
        )
        for p in folder.rglob("*")
        if not p.name.endswith("-shm")
    }  # fmt: skip
    empty = [name for name, (_, raw) in found.items() if name.endswith("-wal") and not raw]
    return {name: value for name, value in found.items() if name not in empty}


def ids(folder: Path) -> set[str]:
    return {t.id for t, _ in api.read_trials(folder)}


def scored(folder: Path) -> set[str]:
    """Return the trials that were scored on test."""
    return {t.id for t, r in api.read_trials(folder) if r is not None and "test" in r.splits}


def replicate(folder: Path, trial_id: str) -> set[str]:
    """Return the trials of the replicate of one of them."""
    keys = {t.id: (t.method.name, t.seed) for t, _ in api.read_trials(folder)}
    return {i for i, key in keys.items() if key == keys[trial_id]}


def results(folder: Path) -> dict[str, TrialResult | None]:
    return {t.id: r for t, r in api.read_trials(folder)}


def known(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = api.read_values(folder)[study_fork.KEY]
    return found


def unread(values: Values, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run a study until its trials would be scored on test."""
    with monkeypatch.context() as patched:
        patched.setattr(replicates, "_choose_finalists", raise_killed)
        with pytest.raises(Killed):
            api.run(parse_spec(values), out, out)
    return out


def more(values: Values) -> Values:
    """Ask for one more contender and one more seed."""
    values["methods"]["contenders"].append("head")
    values["budget"]["seeds"] = 3
    return values


def other_test(values: Values, tmp_path: Path) -> Values:
    values["data"]["test"] = str(write_jsonl(tmp_path / "other.jsonl", rows()[3::4]))
    return values


def test_unforkable_difference_refused(values: Values, parent: Path) -> None:
    """A difference that a fork cannot have is refused with a hint."""
    values["budget"]["steps"] = 12
    with pytest.raises(PreflightError, match="study-differs") as error:
        api.run(parse_spec(values), parent, parent)
    assert "`--fork NEW`" in error.value.try_


def test_fork_reuses_trials_counts_evaluation(
    values: Values, parent: Path, tmp_path: Path, trained: list[str]
) -> None:
    """A fork reuses unchanged trials and counts the test-set evaluation."""
    new, heard = tmp_path / "new", RecordingProgress()
    made = fork(more(values), parent, new, heard)
    assert made["complete"] is True
    old = results(parent)
    assert set(old) < set(results(new))
    assert not set(trained) & set(old), "what was taken over was trained again"
    assert set(trained) == ids(new) - set(old)
    assert {i: results(new)[i] for i in old} == old
    for trial in old:
        here, there = new / "trials" / trial, parent / "trials" / trial
        assert (
            trial not in scored(parent)
            or trial_dir.manifest_hash(here) == trial_dir.manifest_hash(there) is not None
        )
        assert trial not in scored(parent) or trial_dir.find_damage(here) is None
    assert {f.state for f in api.diagnose(new)} == {"ok"}
    assert "Replicates: 4 finished replicates are reused from tiny" in heard.lines

    study = made["study"]
    assert study["test_looks"] == 2
    (look,) = study["test_changes"]
    lines = ["methods.contenders: ln_tuning -> ln_tuning, head", "budget.seeds: 2 -> 3"]
    assert look["changes"][0] == "forked from tiny"
    assert sorted(look["changes"][1:]) == sorted(lines)
    (warning,) = [w for w in made["warnings"] if "evaluated 2 times" in w]
    assert "forked from tiny" in warning
    page = (new / "report.html").read_text()
    assert "the test set was evaluated 2 times" in page
    assert "Forked from the study in the folder tiny" in page
    assert "reusing 8 trials" in page
    shown = made["provenance"]["forked_from"]
    assert (shown["folder"], shown["test_reads"], shown["same_test"]) == ("tiny", 1, True)
    assert sorted(shown["differences"]) == sorted(lines)
    assert shown["at"].endswith("+00:00")
    assert "path" not in shown, "where it lay is nobody else's business"

    trained.clear()
    again = go_on(new)
    assert (again["study"], trained) == (study, [])
    assert again["provenance"]["forked_from"] == shown


def test_fork_matches_fresh_study(values: Values, parent: Path, tmp_path: Path) -> None:
    """A fork gives the numbers of a study that starts from nothing."""
    made = fork(more(values), parent, tmp_path / "new")
    scratch = api.run(parse_spec(values), parent, tmp_path / "scratch")
    keys = ("status", "setting", "score", "difference", "verdict")
    for one, two in zip(made["methods"], scratch["methods"], strict=True):
        assert {k: one[k] for k in keys} == {k: two[k] for k in keys}
        for here, there in zip(one["seeds"], two["seeds"], strict=True):
            # the seed that is new had less company here
            assert here["validation_loss"] == pytest.approx(there.pop("validation_loss"), rel=0.02)
            assert here | there == here
    assert scratch["study"]["test_looks"] == 1


def test_changed_conditions_reuse_nothing(
    values: Values, parent: Path, tmp_path: Path, trained: list[str]
) -> None:
    """Changed conditions reuse no trial and still count an evaluation."""
    values["budget"]["steps"] = 12
    made = fork(values, parent, tmp_path / "new")
    assert set(trained) == ids(tmp_path / "new")
    assert made["study"]["test_looks"] == 2
    assert made["study"]["test_changes"][0]["changes"] == [
        "forked from tiny", "budget.steps: 10 -> 12",
    ]  # fmt: skip
    assert study_fork.TAKEN not in api.read_values(tmp_path / "new")


def test_other_machine_trials_not_reused(
    values: Values, parent: Path, tmp_path: Path, trained: list[str]
) -> None:
    """Trials of another machine are not reused."""
    with closing(sqlite3.connect(parent / "study.db")) as db:
        (text,) = db.execute("select value from study where key = 'frozen'").fetchone()
        frozen = json.loads(text)
        frozen["machine"]["versions"]["torch"] = "1.0"
        query = "update study set value = ? where key = 'frozen'"
        db.execute(query, (json.dumps(frozen),))
        db.commit()
    heard = RecordingProgress()
    made = fork(values, parent, tmp_path / "new", heard)
    assert set(trained) == ids(tmp_path / "new") == ids(parent)
    (said,) = [line for line in heard.lines if line.startswith("no trial is reused")]
    assert "its trials ran on another machine (versions.torch: 1.0 -> " in said
    (line,) = made["provenance"]["forked_from"]["differences"]
    assert line.startswith("machine.versions.torch: 1.0 -> ")


def test_changed_test_rows_count_nothing(values: Values, parent: Path, tmp_path: Path) -> None:
    """A changed test set does not count as a further evaluation."""
    new = tmp_path / "new"
    made = fork(other_test(values, tmp_path), parent, new)
    assert (made["study"]["test_looks"], made["study"]["test_changes"]) == (1, [])
    assert made["provenance"]["forked_from"]["same_test"] is False
    assert made["provenance"]["forked_from"]["test_reads"] == 1
    assert not any("test set was evaluated" in w for w in made["warnings"])


def test_chained_forks_remember_evaluations(values: Values, parent: Path, tmp_path: Path) -> None:
    """Two forks in a row do not make an evaluated test set unseen.

    The rows that were read come back behind a fork with others: their look is remembered.
    """
    back = copy.deepcopy(values)
    fork(other_test(values, tmp_path), parent, tmp_path / "between")
    made = fork(back, tmp_path / "between", tmp_path / "new")
    assert made["study"]["test_looks"] == 2
    (look,) = made["study"]["test_changes"]
    assert [line for line in look["changes"] if line.startswith("forked from")] == [
        "forked from tiny", "forked from between",
    ]  # fmt: skip
    assert made["provenance"]["forked_from"]["same_test"] is False


def test_parent_evaluations_inherited(values: Values, parent: Path, tmp_path: Path) -> None:
    """The parent's test-set evaluations are inherited by the fork."""
    values["task"]["margin"] = 0.05
    api.run(parse_spec(values), parent, parent, again=True)
    made = fork(more(values), parent, tmp_path / "new")
    assert made["study"]["test_looks"] == 3
    changes = [look["changes"] for look in made["study"]["test_changes"]]
    assert changes[0] == ["task.margin: 0.02 -> 0.05"]
    assert changes[1][0] == "forked from tiny"
    values["task"]["margin"] = 0.1
    with pytest.raises(PreflightError, match="test-already-read"):
        api.run(parse_spec(values), tmp_path, tmp_path / "new")
    again = api.run(parse_spec(values), tmp_path, tmp_path / "new", again=True)
    assert again["study"]["test_looks"] == 4


def test_unevaluated_parent_counts_once(
    values: Values, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork of a study that has not evaluated the test set counts one evaluation."""
    parent = unread(values, tmp_path / "tiny", monkeypatch)
    trained.clear()
    values["budget"]["seeds"] = 1
    made = fork(values, parent, tmp_path / "new")
    assert made["study"]["test_looks"] == 1
    assert made["provenance"]["forked_from"]["test_reads"] == 0
    assert set(trained) == ids(tmp_path / "new"), "no replicate of the parent is finished"


def test_later_parent_evaluation_counts(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation by the parent before the fork's own counts."""
    parent = unread(values, tmp_path / "tiny", monkeypatch)
    asked = more(copy.deepcopy(values))
    with monkeypatch.context() as patched:
        patched.setattr(replicates, "_choose_finalists", raise_killed)
        with pytest.raises(Killed):
            fork(asked, parent, tmp_path / "new")
    assert known(tmp_path / "new")["test_reads"] == 0
    at = known(tmp_path / "new")["at"]
    api.run(parse_spec(values), parent, parent)
    made = go_on(tmp_path / "new")
    assert made["study"]["test_looks"] == 2
    assert known(tmp_path / "new")["test_reads"] == 1
    assert known(tmp_path / "new")["at"] == at
    assert "budget.seeds: 2 -> 3" in made["study"]["test_changes"][0]["changes"]


def test_identical_fork_retries_failed_search(
    values: Values, parent: Path, tmp_path: Path, trained: list[str]
) -> None:
    """A fork without a difference retries the replicate of a failed trial."""
    lost = min(ids(parent) - scored(parent))
    failed = TrialResult(lost, Status.FAILED, "its worker died")
    with Writer(parent / "study.db") as store:
        store.save(failed)
    made = fork(values, parent, tmp_path / "new")
    assert set(trained) == replicate(parent, lost)
    assert results(tmp_path / "new")[lost] != failed
    assert made["failures"] == []
    assert made["study"]["test_changes"][0]["changes"] == ["forked from tiny"]
    assert "none" in (tmp_path / "new" / "report.html").read_text()


def spoil_file(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def drop_file(folder: Path) -> None:
    (folder / "adapter" / "adapter_config.json").unlink()


def link_file(folder: Path) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.rename(folder.parent.parent / "elsewhere.json")
    path.symlink_to(folder.parent.parent / "elsewhere.json")


def link_folder(folder: Path) -> None:
    folder.rename(folder.parent.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent.parent / "elsewhere")


def other_run(folder: Path) -> None:
    """A folder that is whole, but not the one that its row was read from."""
    result = trial_dir.read_result(folder)
    assert result is not None
    trial_dir.remove_manifest(folder)
    trial_dir.write_manifest(folder, dataclasses.replace(result, train_seconds=1e6))


SPOILT = (spoil_file, drop_file, link_file, link_folder, other_run)


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda s: s.__name__)
def test_incomplete_folder_not_reused(
    values: Values, parent: Path, tmp_path: Path, trained: list[str], spoil: Any
) -> None:
    """An incomplete trial folder is not reused."""
    lost = min(scored(parent))
    spoil(parent / "trials" / lost)
    made = fork(values, parent, tmp_path / "new")
    assert set(trained) == replicate(parent, lost)
    assert made["complete"] is True
    assert {f.state for f in api.diagnose(tmp_path / "new")} == {"ok"}
    assert not list((tmp_path / "new" / "trials").glob("*.tmp"))


def test_killed_fork_resumes_copying(
    values: Values, parent: Path, tmp_path: Path, trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A fork that was killed between a folder and its row resumes."""
    new, keep = tmp_path / "new", Writer.save_group

    def stops(store: Writer, kept: Any, noted: Any = None) -> None:
        if noted:
            raise Killed
        keep(store, kept, noted)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "save_group", stops)
        with pytest.raises(Killed):
            fork(more(values), parent, new)
    copied = {p.name for p in (new / "trials").iterdir()}
    assert copied == scored(parent)
    half = new / "trials" / "abc.tmp" / "abc"
    half.mkdir(parents=True)
    (half / "adapter.safetensors").write_bytes(b"half")
    assert {f.what for f in api.diagnose(new) if f.code == "orphan"} == {"trials/abc.tmp"}
    made = fork(values, parent, new)
    assert set(api.read_values(new)[study_fork.TAKEN]) == ids(parent)
    assert not set(trained) & ids(parent)
    assert not half.parent.exists()
    assert made["study"]["test_looks"] == 2


def test_kill_9_of_a_fork(values: Values, parent: Path, tmp_path: Path) -> None:
    """Before it knows its parent, when it knows no more, while it takes over, while it trains."""
    new, asked, before = tmp_path / "new", more(values), everything(parent)
    moments = (
        "before a renaming", "after values' rows", "before results' rows", "after results' rows",
        "before a step",
    )  # fmt: skip
    for moment in moments:
        code = kills.run(asked, parent, parent, (moment, 0), fork=new)
        assert code == -signal.SIGKILL, moment
    assert kills.run(asked, parent, parent, fork=new) == 0
    assert everything(parent) == before
    report = json.loads((new / "report.json").read_text())
    assert report["complete"] is True
    assert report["study"]["test_looks"] == 2
    assert {i: results(new)[i] for i in ids(parent)} == results(parent)
    assert kills.leftovers(new) == []
    assert {f.state for f in api.diagnose(new)} == {"ok"}


def gone(parent: Path) -> None:
    shutil.rmtree(parent)


def damaged(parent: Path) -> None:
    (parent / "study.db").write_bytes(b"no database" * 1000)


def begun_anew(parent: Path) -> None:
    gone(parent)
    parent.mkdir()
    Writer(parent / "study.db").close()


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (gone, "it no longer exists"),
        (damaged, "is damaged"),
        (begun_anew, "There is no study"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_fork_resumes_without_parent(
    values: Values, parent: Path, tmp_path: Path, trained: list[str],
    monkeypatch: pytest.MonkeyPatch, lose: Any, why: str,
) -> None:  # fmt: skip
    """A fork resumes when its parent is gone."""
    new = tmp_path / "new"
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "_take_look", raise_killed)
        with pytest.raises(Killed):
            fork(values, parent, new)
    searched = ids(parent)
    lose(parent)
    heard = RecordingProgress()
    made = go_on(new, heard)
    (said,) = [line for line in heard.lines if "no trial is reused from tiny" in line]
    assert why in said
    assert not set(trained) & searched
    assert made["complete"] is True
    assert made["study"]["test_looks"] == 2


def test_parent_and_fork_may_move_together(values: Values, parent: Path, tmp_path: Path) -> None:
    fork(values, parent, tmp_path / "new")
    for name in ("tiny", "new"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "moved" / name)
    heard = RecordingProgress()
    go_on(tmp_path / "moved" / "new", heard)
    assert not any("no trial is reused" in line for line in heard.lines)


def test_running_parent_can_be_forked(
    values: Values, parent: Path, tmp_path: Path, trained: list[str]
) -> None:
    """A running parent can be forked."""
    with lock.hold_lock(parent), Writer(parent / "study.db") as store:
        store.set("wall:1.0", 1.0)
        made = api.run(parse_spec(values), parent, parent, fork=tmp_path / "new")
    assert made["complete"] is True
    assert trained == []


def test_invalid_fork_refused(values: Values, parent: Path, tmp_path: Path) -> None:
    """A fork that makes no sense is refused."""
    spec, taken = parse_spec(values), tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    other = shutil.copytree(parent, tmp_path / "other")
    imported = shutil.copytree(parent, tmp_path / "imported")
    with Writer(imported / "study.db") as store:
        store.set("imported", {})
    begun = tmp_path / "begun"
    begun.mkdir()
    Writer(begun / "study.db").close()
    before = everything(tmp_path)
    cases = [
        (tmp_path / "nothing", tmp_path / "new", {}, "no-study"),
        (begun, tmp_path / "new", {}, "no-study"),
        (parent, parent, {}, "fork-itself"),
        (parent, tmp_path / "x" / ".." / "tiny", {}, "fork-itself"),
        (parent, parent / "inside", {}, "fork-itself"),
        (parent, taken, {}, "fork-taken"),
        (parent, other, {}, "fork-taken"),
        (parent, taken / "mine.txt", {}, "fork-taken"),
        (imported, tmp_path / "new", {}, "fork-imported"),
        (parent, tmp_path / "new", {"again": True}, "fork-again"),
    ]
    for origin, new, asked, code in cases:
        with pytest.raises(UsageError) as error:
            api.run(spec, parent, origin, fork=new, **asked)
        assert error.value.code == code, (origin, new)
    assert everything(tmp_path) == before


def test_fork_into_other_fork_refused(values: Values, parent: Path, tmp_path: Path) -> None:
    """The folder of another study's fork is refused."""
    other = shutil.copytree(parent, tmp_path / "other")
    fork(values, parent, tmp_path / "new")
    with pytest.raises(UsageError, match="fork-taken"):
        fork(values, other, tmp_path / "new")
    values["budget"]["steps"] = 12
    with pytest.raises(PreflightError, match="study-differs"):
        fork(values, parent, tmp_path / "new")


def test_empty_and_refused_folders_usable(values: Values, parent: Path, tmp_path: Path) -> None:
    """An empty folder and one left by a refused fork can be used."""
    new, broken = tmp_path / "new", copy.deepcopy(values)
    new.mkdir()
    misread = copy.deepcopy(values)
    misread["methods"]["contenders"] = ["no_such_method"]
    with pytest.raises(UsageError, match="no_such_method"):
        fork(misread, parent, new)
    assert not (new / "study.db").exists()
    for name in (progress.LOG, lock.NOTE, lock.NOTE + files.PARTIAL_SUFFIX):
        (new / name).write_text("")
    broken["method"] = {"lora": {"config": {"target_modules": ["no_such_layer"]}}}
    with pytest.raises(PreflightError, match="target-modules-not-found"):
        fork(broken, parent, new)
    assert fork(values, parent, new)["complete"] is True


def test_retry_combines_with_fork(values: Values, parent: Path, tmp_path: Path) -> None:
    """Retry and fork can be combined.

    On a new fork there is nothing to try again: what failed in the parent is not taken.
    """
    assert fork(values, parent, tmp_path / "new", retry=True)["retried"] == []


class Cli:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        self.patch, self.capsys = monkeypatch, capsys

    def __call__(self, *options: str) -> tuple[Any, str, str]:
        self.patch.setattr(sys, "argv", ["bakeoff", "run", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = self.capsys.readouterr()
        return end.value.code, said.out, " ".join(said.err.split())


@pytest.fixture
def bakeoff(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def test_command_line_forks(
    values: Values, parent: Path, tmp_path: Path, bakeoff: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line forks a study."""
    (tmp_path / "runs").mkdir()
    shutil.move(parent, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(tomli_w.dumps(more(values)))
    code, _, err = bakeoff("study.toml")
    assert code == 3
    assert "Try: `--again`" in err, "another contender would be a further look"
    values["budget"]["batch_size"] = 4
    Path("study.toml").write_text(tomli_w.dumps(values))
    code, _, err = bakeoff("study.toml")
    assert code == 3
    assert "Try: `--fork NEW` to start a new study in the folder NEW" in err
    code, printed, err = bakeoff("study.toml", "--fork", "runs/other", "--json")
    assert code == 0
    assert f"Report: {Path('runs/other/report.html')}" in err
    assert json.loads(printed)["provenance"]["forked_from"]["folder"] == "tiny"
    code, printed, _ = bakeoff("runs/other", "--json")
    assert code == 0
    assert json.loads(printed)["study"]["test_looks"] == 2
    code, _, err = bakeoff("runs/other", "--fork", "runs/other")
    assert (code, "[fork-itself]" in err) == (2, True)
    code, _, err = bakeoff("study.toml", "--out", "nowhere", "--fork", "runs/third")
    assert (code, "[no-study]" in err, Path("runs/third").exists()) == (2, True, False)


def test_cli_forks_without_study_file(
    values: Values, tmp_path: Path, bakeoff: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line forks a study without a study file.

    The options are written down elsewhere: not into the parent, nor where the fork is to be.
    """
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("said.jsonl"), rows())
    parent, asked = Path("runs/said"), []
    parent.mkdir(parents=True)
    (parent / "study.db").write_bytes(b"")

    def run(spec: Any, source: Path, out: Path, _: Any, **options: Any) -> dict[str, Any]:
        assert read_spec(source / "study.toml") == spec
        asked.append((spec.name, spec.budget.steps, out, options["fork"]))
        return made_report()

    monkeypatch.setattr(api, "run", run)
    before = everything(tmp_path)
    options = ("--model", values["base"]["model"], "--data", "said.jsonl", "--steps", "5")
    bakeoff(*options, "--fork", "runs/five")
    assert asked == [("said", 5, parent, Path("runs/five"))]
    assert everything(tmp_path) == before


def test_page_escapes_parent() -> None:
    """The page shows the parent as text."""
    made = made_report()
    made["provenance"]["forked_from"] = {
        "folder": HOSTILE[0], "at": HOSTILE[1], "differences": [f"{HOSTILE[0]}: 1 -> 2"],
        "test_reads": 2, "same_test": True, "trials_taken": 1,
    }  # fmt: skip
    jsonschema.validate(made, SCHEMA)
    page = render(made)
    assert HOSTILE[0] not in page
    assert HOSTILE[1] not in page
    assert "had been evaluated 2 times by then" in page
