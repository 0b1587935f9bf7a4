"""Studies of earlier code: read, reported and exported by the code of today.

`tests/data/legacy_study` holds two study folders that were written before settings raced inside
each replicate: `finished`, and `interrupted`, which was killed with SIGKILL after rung 6 of its
search and has commits in the write-ahead log only. Trial ids hash the absolute path of the base, so
the tests put copies at the path where the studies were made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers.command import bakeoff
from helpers.executors import StandIns, current_factory, use_executors

from bakeoff import api
from bakeoff.core import jobs
from bakeoff.core.errors import PreflightError
from bakeoff.integrations.export_weights import export_weights
from bakeoff.report.live.queries import outline, snapshot
from bakeoff.study.config import parse_spec
from bakeoff.study.storage.database import Reader, Writer

DATA = Path(__file__).parents[1] / "data" / "legacy_study"
ORIGIN = Path("/tmp/bakeoff-legacy-study")
MARKER = ".copied-by-test"
FINISHED = {"lora": ["1b77e7b09c0f", "8a7551b0d795"], "full": ["1d5d0388b52a", "31218d23c487"]}
"""The final trials of each method in `finished`, by seed."""
VALUES: dict[str, Any] = {
    "name": "legacy",
    "base": {"model": "base"},
    "data": {"train": "rows.jsonl"},
    "task": {"kind": "classify", "max_length": 32},
    "methods": {"control": "lora", "contenders": ["full"]},
    "budget": {
        "steps": 20, "batch_size": 8, "settings": 3, "seeds": 2, "validations": 2, "extend": 0,
    },
    "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
}  # fmt: skip
UNSTABLE = ("provenance", "timing")
"""Parts of a report that hold versions, paths and times."""

pytestmark = [
    pytest.mark.xdist_group("legacy_study"),
    pytest.mark.skipif(os.name != "posix", reason="the studies were made under /tmp"),
]


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a copy of the data at its original path, for one test at a time on this machine."""
    with FileLock(f"{ORIGIN}.lock"):
        if ORIGIN.exists():
            assert (ORIGIN / MARKER).is_file(), f"{ORIGIN} is needed for a test: move it"
            shutil.rmtree(ORIGIN)  # left by a test that was killed
        half = ORIGIN.with_name(f"{ORIGIN.name}.{os.getpid()}")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(DATA, half)
        (half / MARKER).touch()
        half.rename(ORIGIN)
        monkeypatch.chdir(ORIGIN)
        try:
            yield ORIGIN
        finally:
            shutil.rmtree(ORIGIN)


def run(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the study as on the machine where it was started: resuming requires an equal one."""
    with Reader(out / "study.db") as reader:
        machine = reader.values("frozen")["frozen"]["machine"]
    stand_in = StandIns(current_factory(), {jobs.DETECT_MACHINE: lambda requested: machine})
    use_executors(monkeypatch, stand_in)
    return api.run(parse_spec(VALUES), folder, out)


def load_report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def numbers(value: Any, path: str = "") -> dict[str, Any]:
    """Return every leaf that is no text, and every empty container, by its path."""
    if isinstance(value, dict) and value:
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and value:
        parts = [(str(i), part) for i, part in enumerate(value)]
    else:
        return {} if isinstance(value, str) else {path: value}
    return {k: v for key, part in parts for k, v in numbers(part, f"{path}/{key}").items()}


def final_scores(report: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Return each method's final trials: seed, trial id, status and test score."""
    return {
        m["method"]: [(s["seed"], s["trial_id"], s["status"], s["test_score"]) for s in m["seeds"]]
        for m in report["methods"]
    }


def test_finished_report_numbers(origin: Path) -> None:
    """The report of a finished study has every key and every number that it had."""
    old = load_report(origin / "finished")
    new = json.loads(json.dumps(api.report(origin / "finished")))
    assert list(new) == list(old)
    before, after = (numbers({k: v for k, v in r.items() if k not in UNSTABLE}) for r in (old, new))
    # what is measured since then is unknown
    assert set({path: after.pop(path) for path in after.keys() - before.keys()}.values()) <= {None}
    assert after == {
        path: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        for path, value in before.items()
    }
    assert set(new["timing"]) == set(old["timing"])
    assert set(new["provenance"]) == set(old["provenance"])
    assert final_scores(new) == final_scores(old)
    assert [m["verdict"] for m in new["methods"]] == [m["verdict"] for m in old["methods"]]
    assert load_report(origin / "finished") == new


def test_finished_read_by_commands(origin: Path) -> None:
    """`status`, `report` and `doctor` read a finished study."""
    status = bakeoff("status", "finished", cwd=origin)
    assert (status.returncode, status.stderr) == (0, "")
    assert "Full fine-tuning" in status.stdout
    report = bakeoff("report", "finished", "--format", "md", cwd=origin)
    assert report.returncode == 0, report.stderr
    assert "Full fine-tuning" in report.stdout
    doctor = bakeoff("doctor", "finished", "--json", cwd=origin)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert {f["state"] for f in json.loads(doctor.stdout)["findings"]} == {"ok"}


@pytest.mark.parametrize("method", FINISHED)
def test_finished_weights_exported(origin: Path, method: str) -> None:
    """The saved weights of a finished study are exported and score as they did."""
    made = export_weights(origin / "finished", origin / "exported", method)
    assert made.differing == 0
    assert made.score == made.trained_score
    assert made.loss == pytest.approx(made.trained_loss, rel=1e-4)
    assert list((origin / "exported").glob("*.safetensors"))


def test_finished_shown_in_live_view(origin: Path) -> None:
    """The live view shows a finished study."""
    shown = outline(origin / "finished")
    assert (shown["name"], shown["done"], shown["planned"]) == ("legacy", 10, 10)
    found = snapshot(origin / "finished")
    assert found.complete
    assert {s["key"] for s in found.sections} >= {"table", "forest", "pareto"}
    trials = {m: list(by_seed.values()) for m, by_seed in found.item_query.trials.items()}
    assert trials == FINISHED


def test_finished_trains_nothing(
    origin: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running a finished study again trains nothing and gives the same report."""
    old = load_report(origin / "finished")
    new = run(origin, origin / "finished", monkeypatch)
    assert trained == []
    assert len(list(api.read_trials(origin / "finished"))) == 10
    assert final_scores(new) == final_scores(old)


def test_interrupted_reported_not_mixed(
    origin: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished study of the older protocol is reported as it is, and not trained further."""
    out = origin / "interrupted"
    assert (out / "study.db-wal").stat().st_size > 0
    report = api.report(out)
    assert report["complete"] is False
    assert "rounds" not in report
    with pytest.raises(PreflightError) as error:
        run(origin, out, monkeypatch)
    assert error.value.code == "older-protocol"
    assert "--out" in error.value.try_
    assert trained == []
    assert len(list(api.read_trials(out))) == len(list(api.read_trials(origin / "finished"))) - 4


def test_finished_database_migrated_with_backup(
    origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer adds the table of looks, and keeps the database as it was beside it."""
    path = origin / "finished" / "study.db"
    before = api.report(origin / "finished")
    Writer(path).close()
    with Reader(path) as reader, Reader(path.with_name("study.db.v2.bak")) as backup:
        assert (reader.version, backup.version) == (3, 2)
        assert reader.looks("planned") == backup.looks("planned") == []
        assert reader.trials() == backup.trials()
    after = api.report(origin / "finished")
    assert {k: v for k, v in after.items() if k not in UNSTABLE} == {
        k: v for k, v in before.items() if k not in UNSTABLE
    }
