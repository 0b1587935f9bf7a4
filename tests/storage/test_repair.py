"""`bakeoff doctor STUDY`: what is damaged is found and named, and repaired; no result is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers.records import make_entry
from typer.testing import CliRunner

from bakeoff.cli import app, doctor
from bakeoff.core import trial_dir
from bakeoff.core.errors import BakeoffError
from bakeoff.core.results import Cost, SplitScores, Status, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.data import rows
from bakeoff.study.storage import lock, repair
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.testing.trials import CONDITIONS
from bakeoff.training import checkpoints

DONE, LOST, RACING, STOPPED = (
    Trial(make_entry("lora"), {"learning_rate": 1e-3 * (n + 1)}, 0, phase, CONDITIONS)
    for n, phase in enumerate(("final", "final", "search", "search"))
)


def result(trial: Trial) -> TrialResult:
    splits = {"test": SplitScores((1.0, 0.0), ("a", "b"), None)}
    return TrialResult(trial.id, Status.DONE, splits=splits, step=30, item_losses=(0.5, 0.25))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that is whole: a final trial done, another planned, one at a rung, one stopped."""
    out = tmp_path / "study"
    out.mkdir()
    sums = {s: rows.write_split(out / "data" / f"{s}.jsonl", [{"text": s}]) for s in rows.SPLITS}
    at_rung = dataclasses.replace(result(RACING), status=Status.STOPPED, step=5, splits={})
    place = out / "trials" / DONE.id
    (place / "adapter").mkdir(parents=True)
    (place / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    trial_dir.write_manifest(place, result(DONE))
    checkpoints.save(
        trial_dir.checkpoint_path(out / "trials", RACING.id, 5),
        checkpoints.Checkpoint({"values": torch.arange(4.0)}, {}, at_rung),
    )
    with Writer(out / "study.db") as store:
        store.set("frozen", {"data": sums, "metric": {"name": "accuracy", "source": None}})
        store.add_trials([DONE, LOST, RACING, STOPPED])
        store.save(result(DONE))
        store.save_group([at_rung])
        store.save(dataclasses.replace(at_rung, trial_id=STOPPED.id, reason="slower"))
        store.save_cost(Cost("lora", Status.DONE, step_milliseconds=1.0))
    return out


def lose_a_row(out: Path) -> None:
    trial_dir.write_manifest(_folder(out, LOST), result(LOST))


def _folder(out: Path, trial: Trial) -> Path:
    place = out / "trials" / trial.id
    place.mkdir(exist_ok=True)
    return place


def _sql(out: Path, statement: str) -> None:
    with closing(sqlite3.connect(out / "study.db")) as db:
        db.execute(statement)
        db.commit()


def tear_a_state(out: Path) -> None:
    path = trial_dir.checkpoint_path(out / "trials", RACING.id, 5)
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit_of_a_state(out: Path) -> None:
    path = trial_dir.checkpoint_path(out / "trials", RACING.id, 5)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def lose_a_state(out: Path) -> None:
    shutil.rmtree(out / "trials" / RACING.id)


def leave_half_a_file(out: Path) -> None:
    (out / "trials" / DONE.id / "adapter" / ".tmpa1B2c3").write_bytes(b"half")
    (out / "trials" / RACING.id / "state" / "6.safetensors.tmp").write_bytes(b"half")
    (out / "report.json.tmp").write_text("half")


def leave_a_stranger(out: Path) -> None:
    (out / "trials" / "0123456789ab").mkdir()
    (out / "trials" / "0123456789ab" / "adapter.bin").write_bytes(b"half")


def cut_the_log(out: Path) -> None:
    (out / "log.jsonl").write_text('{"event": "say"}\n{"ev')


def change_a_score(out: Path) -> None:
    _sql(out, f"UPDATE scores SET score = 0.75 WHERE trial_id = '{DONE.id}' AND item = 0")


MENDED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a finished trial without a row (fault 3)": (lose_a_row, "row-missing"),
    "a state that is cut off (fault 2)": (tear_a_state, "state-torn"),
    "a state with another bit (fault 2)": (flip_a_bit_of_a_state, "state-torn"),
    "a state that is gone (fault 2)": (lose_a_state, "state-torn"),
    "half-written files (fault 2)": (leave_half_a_file, "orphan"),
    "the folder of an unknown trial (fault 2)": (leave_a_stranger, "orphan"),
    "a log whose last line is cut off (fault 26)": (cut_the_log, "log-torn"),
    "a score that is not its folder's (fault 25)": (change_a_score, "row-differs"),
}


def codes(found: list[repair.Finding], state: str) -> set[str]:
    return {f.code for f in found if f.state == state}


PASSING = (".lock", "study.db-")
"""What any process that looks at a study may leave: its lock file, SQLite's shared memory."""


def contents(out: Path) -> dict[str, str]:
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and not p.name.startswith(PASSING))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_intact_study_has_no_findings(study: Path) -> None:
    """An intact study has no findings."""
    for fix in (False, True):
        before = contents(study / "trials")
        found = repair.diagnose(study, fix)
        assert {f.state for f in found} == {"ok"}
        assert {f.what for f in found} == {
            "database", "trials", *(f"data/{s}.jsonl" for s in rows.SPLITS),
        }  # fmt: skip
        assert contents(study / "trials") == before
    moved = study.with_name("moved")  # fault 31: nothing in the folder says where it lies
    study.rename(moved)
    assert {f.state for f in repair.diagnose(moved)} == {"ok"}


@pytest.mark.parametrize("what", MENDED)
def test_repair_is_idempotent(study: Path, what: str) -> None:
    """Everything repairable is repaired, and a second repair changes nothing.

    Faults 2, 3, 25, 26: reported without touching anything, repaired on demand.
    """
    harm, code = MENDED[what]
    harm(study)
    before = contents(study)
    assert codes(repair.diagnose(study), "bad") == {code}
    assert contents(study) == before, "a report changed something"
    found = repair.diagnose(study, repair=True)
    assert (codes(found, "repaired"), codes(found, "bad")) == ({code}, set())
    again = repair.diagnose(study, repair=True)
    assert {f.state for f in again} == {"ok"}
    with Reader(study / "study.db") as reader:
        trials = {t.id: r for t, r in reader.trials()}
        assert trials[DONE.id] == dataclasses.replace(result(DONE), item_losses=())
        there = trials[LOST.id]
        assert (there is not None) == (code == "row-missing")
        if there is not None:
            assert there.splits == result(LOST).splits
        # a trial that cannot go on begins again; any other stays where it stands
        assert (RACING.id in reader.last_rung()) == (code != "state-torn")


def lose_an_adapter(out: Path) -> None:
    (out / "trials" / DONE.id / "adapter" / "adapter_model.safetensors").unlink()


def flip_a_bit_of_an_adapter(out: Path) -> None:
    (out / "trials" / DONE.id / "adapter" / "adapter_model.safetensors").write_bytes(b"weightz")


def lose_a_folder(out: Path) -> None:
    shutil.rmtree(out / "trials" / DONE.id)


def another_runs_folder(out: Path) -> None:
    place = out / "trials" / DONE.id
    (place / "adapter" / "adapter_model.safetensors").write_bytes(b"other weights")
    trial_dir.write_manifest(place, result(DONE))


def change_the_data(out: Path) -> None:
    (out / "data" / "test.jsonl").write_text("{}\n")


REPORTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter is gone (fault 25)": (lose_an_adapter, "folder-damaged"),
    "an adapter has another bit (fault 43)": (flip_a_bit_of_an_adapter, "folder-damaged"),
    "a trial's folder is gone (fault 25)": (lose_a_folder, "folder-damaged"),
    "weights of another run (fault 25)": (another_runs_folder, "folder-differs"),
    "frozen data were edited (fault 52)": (change_the_data, "frozen-differs"),
}


@pytest.mark.parametrize("what", REPORTED)
def test_unrepairable_stays_and_loses_nothing(study: Path, what: str) -> None:
    """What cannot be repaired is reported again and no result is lost."""
    harm, code = REPORTED[what]
    harm(study)
    for fix in (False, True):
        assert codes(repair.diagnose(study, fix), "bad") == {code}
    with Reader(study / "study.db") as reader:
        assert DONE.id in reader.finished_ids()


def test_incomplete_folder_is_no_result(study: Path) -> None:
    """An incomplete folder is never taken for a result.

    Fault 3: a folder without its row counts only if every hash is right, and it did not fail.
    """
    lose_a_row(study)
    path = study / "trials" / LOST.id / trial_dir.RESULT
    path.write_text(path.read_text().replace("1.0", "0.0"))
    with Writer(study / "study.db") as store:
        assert repair.adopt_finished_trials(study, store, [LOST]) == []
        assert not (path.parent / trial_dir.MANIFEST).exists(), "a worker would have left it alone"
        trial_dir.write_manifest(path.parent, TrialResult(LOST.id, Status.FAILED, "why"))
        assert repair.adopt_finished_trials(study, store, [LOST]) == []
        trial_dir.write_manifest(path.parent, result(LOST))
        (found,) = repair.adopt_finished_trials(study, store, [LOST])
        assert (found.code, found.state) == ("row-missing", "repaired")
        assert repair.adopt_finished_trials(study, store, [LOST]) == []


@pytest.mark.parametrize("how", ["a page is blank", "no database"])
def test_damaged_database_rebuilt(study: Path, how: str) -> None:
    """A damaged database is rebuilt from the remaining files.

    Fault 25: results come back from the folders; the damaged file is kept.
    """
    path = study / "study.db"
    raw = path.read_bytes()
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'scores'"
        page = (db.execute(query).fetchone()[0] - 1) * 4096
    raw = raw[:page] + bytes(4096) + raw[page + 4096 :] if how == "a page is blank" else b"x" * 9999
    path.write_bytes(raw)
    assert codes(repair.diagnose(study), "bad") == {"database-damaged"}
    found = repair.diagnose(study, repair=True)
    assert "database-damaged" in codes(found, "repaired")
    assert (study / "study.db.damaged").read_bytes() == raw
    with Reader(path) as reader:
        assert reader.integrity_problems() == []
        assert "rebuilt" in reader.values()
        if how == "a page is blank":
            assert [t for t, _ in reader.trials()] == [DONE, LOST, RACING, STOPPED]
            assert DONE.id in reader.finished_ids()
            assert reader.costs()["lora"].step_milliseconds == 1.0
            assert reader.results_at_rung(5)[RACING.id].item_losses == (0.5, 0.25)
            assert "frozen" in reader.values()
    # of a trial that no plan names the finished folder stays, for the run that plans it
    assert trial_dir.read_result(study / "trials" / DONE.id) == result(DONE)
    with Writer(path) as store:
        store.add_trials([DONE])
        repair.adopt_finished_trials(study, store, [DONE])
    with Reader(path) as reader:
        assert DONE.id in reader.finished_ids()
        assert reader.has_test_scores()


def test_running_study_not_repaired(study: Path) -> None:
    """A running study is not repaired.

    Fault 20: what a running study is writing is neither reported as torn nor touched.
    """
    leave_half_a_file(study)
    with lock.hold_lock(study):
        with pytest.raises(BakeoffError, match="study-locked"):
            repair.diagnose(study, repair=True)
        found = repair.diagnose(study)
    assert found[0].code == "running"
    assert codes(found, "bad") == set()
    assert codes(repair.diagnose(study), "bad") == {"orphan"}


@pytest.mark.parametrize("option", ["--repair", "--mend"])
def test_doctor_command_repairs(study: Path, option: str) -> None:
    """The command `bakeoff doctor` reports and repairs; `--mend` is the option's old name.

    Exit 6 while something is bad, 0 once it is repaired; JSON says the same.
    """
    leave_half_a_file(study)
    shown = CliRunner().invoke(app, ["doctor", str(study)])
    assert shown.exit_code == 6
    assert "report.json.tmp" in shown.output
    listed = CliRunner().invoke(app, ["doctor", str(study), "--json"])
    assert listed.exit_code == 6
    found = json.loads(listed.stdout)
    assert found["folder"] == str(study)
    assert [f["state"] for f in found["findings"] if f["code"] == "orphan"] == ["bad"] * 3
    assert CliRunner().invoke(app, ["doctor", str(study), option]).exit_code == 0
    assert CliRunner().invoke(app, ["doctor", str(study)]).exit_code == 0
    with pytest.raises(BakeoffError, match="no-study"):
        repair.diagnose(study.parent)


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ((3, 40, 1), "note"), ((3, 44, 5), "note"), ((3, 44, 6), "ok"), ((3, 45, 9), "note"),
        ((3, 50, 6), "note"), ((3, 50, 7), "ok"), ((3, 51, 2), "note"), ((3, 51, 3), "ok"),
        ((3, 53, 0), "ok"), ((4, 0, 0), "ok"),
    ],
)  # fmt: skip
def test_sqlite_wal_reset_bug_reported(
    version: tuple[int, int, int], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SQLite version with the WAL-reset bug is reported.

    Fault 22: two writers could lose a commit; a study has one.
    """
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, version)))
    found = doctor._check_sqlite()
    assert (found.what, found.state) == ("sqlite", state)
    assert found.detail.startswith(".".join(map(str, version)))
    assert ("two writers" in found.detail) == (state == "note")


def test_database_copied_without_wal(study: Path, tmp_path: Path) -> None:
    """A database that was copied without its write-ahead log is restored.

    Fault 25: what was still in the write-ahead log is taken from the folders.
    """
    with Writer(study / "study.db") as store:
        trial_dir.write_manifest(_folder(study, LOST), result(LOST))
        store.save(result(LOST))
        assert (study / "study.db-wal").stat().st_size > 0
        copy = tmp_path / "copy"
        shutil.copytree(study, copy, ignore=shutil.ignore_patterns("study.db-*"))
    assert codes(repair.diagnose(copy), "bad") == {"row-missing"}
    assert codes(repair.diagnose(copy, repair=True), "repaired") == {"row-missing"}
    with Reader(copy / "study.db") as reader, Reader(study / "study.db") as whole:
        assert reader.trials() == whole.trials()
