"""`bakeoff run --retry`: what failed is tried again, nothing else is, its failure stays known."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import tomli_w
from helpers import kills
from helpers.executors import StandIns
from helpers.report_fixture import HOSTILE
from helpers.report_fixture import report as made_report
from helpers.study_runs import (
    SCHEMA,
    Killed,
    RecordingProgress,
    Values,
    raise_killed,
    run_validated,
    stored_rows,
    study_values,
)
from sqlalchemy.exc import StatementError

from bakeoff import api, cli
from bakeoff.core import jobs
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import Segment, Trial
from bakeoff.report import render
from bakeoff.study import replicates, retry, rounds
from bakeoff.study.config import parse_spec
from bakeoff.study.scheduler import RunContext
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.testing.tiny import rows, write_jsonl
from bakeoff.testing.trials import make_trial
from bakeoff.training import segment

pytestmark = pytest.mark.usefixtures("costs_are_known")
Ended = dict[str, tuple[Trial, TrialResult | None]]


class Faults:
    """What fails while it is in the list, and which trials were trained meanwhile."""

    def __init__(self) -> None:
        self.fail: Callable[[Trial], bool] = lambda _: False
        """Trials that fail while they race."""
        self.fail_on_test: Callable[[Trial], bool] = lambda _: False
        """Trials that fail when they are scored on test."""
        self.trained: list[str] = []

    def mend(self) -> None:
        """Let nothing fail any more, and forget which trials were trained."""
        self.__init__()  # type: ignore[misc]

    def __call__(self, given: Segment, curves: Any) -> Any:
        self.trained += [t.id for t in given.trials]
        results = train(given, curves)
        fail = self.fail_on_test if given.scores_test else self.fail
        return [
            TrialResult(t.id, Status.FAILED, f"the fault of {t.method.name}") if fail(t) else r
            for t, r in zip(given.trials, results, strict=True)
        ]  # fmt: skip


train = segment._train_and_score


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found = Faults()
    monkeypatch.setattr(segment, "_train_and_score", found)
    return found


@pytest.fixture(scope="module")
def whole(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Values, dict[str, Any], Ended, Path]:
    """A study in which nothing failed but what diverged: its values, report, trials and folder."""
    folder = tmp_path_factory.mktemp("whole")
    data = {"train": write_jsonl(folder / "rows.jsonl", rows())}
    values = study_values(tiny_bert, data, ["ln_tuning"], steps=20, settings=3, extend=0) | {
        "method": {
            "lora": {"learning_rates": [1e-3, 1e-2, 3e-2]},
            "ln_tuning": {"learning_rates": [1e-3, 1e-2, 1e30]},
        }
    }
    report = api.run(parse_spec(values), folder, folder / "out")
    return values, report, ended(folder / "out"), folder


@pytest.fixture
def values(whole: tuple[Values, dict[str, Any], Ended, Path]) -> Values:
    return copy.deepcopy(whole[0])


@pytest.fixture
def best(whole: tuple[Values, dict[str, Any], Ended, Path]) -> float:
    """The rate that LoRA's first replicate chooses where nothing fails."""
    chosen = [(t, r) for t, r in whole[2].values() if r is not None and "test" in r.splits]
    return next(t.learning_rate for t, _ in chosen if _is_first_lora(t))


def ended(out: Path) -> Ended:
    return {t.id: (t, r) for t, r in api.read_trials(out)}


def status(out: Path) -> dict[str, Status | None]:
    return {i: r.status if r else None for i, (_, r) in ended(out).items()}


def check_replicates(out: Path) -> None:
    """Check that one trial of each replicate was scored on test: the best of those that ended."""
    replicates: dict[tuple[str, int], list[tuple[Trial, TrialResult]]] = {}
    for trial, result in ended(out).values():
        assert result is not None
        replicates.setdefault((trial.method.name, trial.seed), []).append((trial, result))
    assert sorted(replicates) == [(m, s) for m in ("ln_tuning", "lora") for s in (1, 2)]
    for group in replicates.values():
        losses = {
            t.id: r.validation_loss
            for t, r in group
            if r.step == t.conditions.steps and r.status is not Status.DIVERGED
        }
        (tested,) = (t.id for t, r in group if "test" in r.splits)
        assert losses[tested] == min(loss for loss in losses.values() if loss is not None)


def rows_of(out: Path, *but: str) -> dict[str, list[Any]]:
    """Return the database's rows of all trials but some."""
    kept = stored_rows(out)
    del kept["study"]
    return {table: [r for r in rows if r[0] not in but] for table, rows in kept.items()}


def _is_first_lora(trial: Trial) -> bool:
    """Return whether a trial belongs to LoRA's first replicate."""
    return (trial.seed, trial.method.name) == (1, "lora")


def stopped_before_test(
    values: Values, out: Path, monkeypatch: pytest.MonkeyPatch, retry: bool = False
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(replicates, "_choose_finalists", raise_killed)
        with pytest.raises(Killed):
            run_validated(values, out, retry=retry)


def test_failed_replicate_retried_only(
    whole: tuple[Values, dict[str, Any], Ended, Path], values: Values, tmp_path: Path,
    faults: Faults,
) -> None:  # fmt: skip
    """A replicate whose trial failed on test runs again, nothing else does, and it is one look."""
    out = tmp_path / "out"
    faults.fail_on_test = _is_first_lora
    report = run_validated(values, out)
    (failed,) = [f for f in report["failures"] if f["status"] == "failed"]
    lost = {i for i, (t, _) in ended(out).items() if _is_first_lora(t)}
    before = rows_of(out, *lost)
    faults.mend()
    progress = RecordingProgress()
    again = run_validated(values, out, progress, retry=True)
    assert lost <= set(faults.trained)
    assert {ended(out)[i][0].method.name for i in faults.trained} == {"lora"}
    assert rows_of(out, *lost) == before
    check_replicates(out)
    assert again["complete"] is True
    assert again["study"]["test_looks"] == 2, "a look was taken without it"
    assert again["study"]["test_changes"][0]["changes"] == ["retried: LoRA seed 1"]
    assert len(again["rounds"]["again"]) == 1
    (noted,) = again["retried"]
    assert noted == {
        "at": noted["at"], "phase": "replicate", "method": "lora", "trial_id": failed["trial_id"],
        "seed": 1, "setting": failed["setting"], "status": "failed",
        "reason": "the fault of lora",
    }  # fmt: skip
    (said,) = [line for line in progress.lines if line.startswith("retrying")]
    assert said == retry.describe_retry(noted)
    assert json.dumps(said) in (out / "log.jsonl").read_text()
    assert "Retried runs: their earlier results" in (out / "report.html").read_text()
    # the first look lacked the replicate, so it cannot be computed again
    assert {f.code for f in api.diagnose(out) if f.state != "ok"} == {"looks-differ"}
    faults.trained.clear()
    assert run_validated(values, out)["retried"] == [noted]
    assert faults.trained == []


@pytest.mark.parametrize("lanes", ["auto", 2])
def test_replicate_races_from_start(
    whole: tuple[Values, dict[str, Any], Ended, Path], values: Values, tmp_path: Path,
    faults: Faults, best: float, lanes: str | int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A replicate with a failed setting races again; no look has been taken, so none is added."""
    out = tmp_path / "out"
    values["engine"]["lanes"] = lanes
    faults.fail = lambda t: _is_first_lora(t) and t.learning_rate == best
    stopped_before_test(values, out, monkeypatch)
    (failed,) = [i for i, s in status(out).items() if s is Status.FAILED]
    faults.mend()
    again = run_validated(values, out, retry=True)
    assert failed in faults.trained
    check_replicates(out)
    assert again["complete"] is True
    assert (again["study"]["test_looks"], again["rounds"]["again"]) == (1, [])
    (noted,) = again["retried"]
    assert (noted["phase"], noted["trial_id"]) == ("replicate", failed)
    assert not list((out / "trials").glob("*/state/*"))
    assert {f.state for f in api.diagnose(out)} == {"ok"}
    assert not any(r.warnings for _, r in ended(out).values() if r), "nobody fell out of lanes"


def test_scored_replicate_fixed(
    values: Values, tmp_path: Path, faults: Faults, best: float,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Once a replicate was scored on test, its race stays as it is."""
    out = tmp_path / "out"
    faults.fail = lambda t: _is_first_lora(t) and t.learning_rate == best
    report = run_validated(values, out)
    before = stored_rows(out)
    faults.mend()
    progress = RecordingProgress()
    assert run_validated(values, out, progress, retry=True)["failures"] == report["failures"]
    assert faults.trained == []
    assert stored_rows(out) == before
    assert retry.KEPT.format(count="1 failed trial") in progress.lines
    assert "--fork NEW" in retry.KEPT
    assert retry.NOTHING_FAILED not in progress.lines
    monkeypatch.setattr(sys, "argv", ["bakeoff", "report", str(out)])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert f"`bakeoff run {out} --fork NEW`" in " ".join(capsys.readouterr().err.split())


def test_nothing_failed_continues(
    whole: tuple[Values, dict[str, Any], Ended, Path], values: Values, tmp_path: Path,
    faults: Faults,
) -> None:  # fmt: skip
    """Without failures, retrying says so and the study continues."""
    out, progress = shutil.copytree(whole[3] / "out", tmp_path / "out"), RecordingProgress()
    before = stored_rows(out)
    report = run_validated(values, out, progress, retry=True)
    assert retry.NOTHING_FAILED in progress.lines
    assert (report["retried"], faults.trained, stored_rows(out)) == ([], [], before)
    assert "--retry" not in (out / "report.html").read_text()


def test_failed_cost_probe_repeated(
    values: Values,
    tmp_path: Path,
    faults: Faults,
    costs_are_known: StandIns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cost probe that failed is repeated."""
    out, probed = tmp_path / "out", list[str]()
    probe = costs_are_known.functions[jobs.PROBE_COST]

    def fails_once(value: dict[str, Any]) -> dict[str, Any]:
        name = value["trials"][0]["method"]["name"]
        probed.append(name)
        if name == "ln_tuning" and probed.count(name) == 1:
            return Cost(name, Status.OUT_OF_MEMORY, "no room for it").to_json()
        return probe(value)

    monkeypatch.setitem(costs_are_known.functions, jobs.PROBE_COST, fails_once)
    report = run_validated(values, out)
    assert {(f["phase"], f["status"]) for f in report["failures"]} == {
        ("probe", "out_of_memory"), ("replicate", "diverged"),
    }  # fmt: skip
    faults.trained.clear()
    again = run_validated(values, out, retry=True)
    assert probed == ["lora", "ln_tuning", "ln_tuning"]
    assert faults.trained == []
    assert {f["phase"] for f in again["failures"]} == {"replicate"}
    (noted,) = again["retried"]
    assert (noted["phase"], noted["method"], noted["reason"]) == (
        "probe", "ln_tuning", "no room for it",
    )  # fmt: skip
    row = next(m for m in again["methods"] if m["method"] == "ln_tuning")
    assert row["cost"]["step_milliseconds"] > 0


def test_kill_during_retry_resumes(
    whole: tuple[Values, dict[str, Any], Ended, Path], values: Values, tmp_path: Path,
    faults: Faults, best: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """kill -9 between deleting and training leaves a study that resumes."""
    out = tmp_path / "out"
    faults.fail = lambda t: _is_first_lora(t) and t.learning_rate == best
    stopped_before_test(values, out, monkeypatch)
    (failed,) = [i for i, s in status(out).items() if s is Status.FAILED]
    lost = {i for i, (t, _) in ended(out).items() if _is_first_lora(t)}
    others = {i: s for i, s in status(out).items() if i not in lost}
    first = ("before a step", 0)
    assert kills.run(values, out, out, first, retry=True) == -signal.SIGKILL
    assert status(out) == {**others, **dict.fromkeys(lost)}
    assert api.report(out)["complete"] is False
    assert kills.run(values, out, out) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["complete"] is True
    assert [n["trial_id"] for n in report["retried"]] == [failed]
    check_replicates(out)


def begun(tmp_path: Path, *trials: Trial) -> tuple[Any, Writer]:
    """Return a study of some trials and its store; nothing of it can be trained."""
    entries = {t.method.name: t.method for t in trials}.values()
    study = SimpleNamespace(folder=tmp_path, entries=tuple(entries), spec=SimpleNamespace(seed=0))
    store = Writer(tmp_path / "study.db")
    store.add_trials(trials)
    return study, store


def test_failed_base_scores_repeated(tmp_path: Path) -> None:
    """Scores of the base that ended in an error are computed again."""
    study, store = begun(tmp_path, make_trial("lora", "classify"))
    store.set(retry.BASE_SCORES, {"scores": {"scores": [1.0], "predictions": [None]}})
    progress = RecordingProgress()
    retry.reset_failed(study, store, progress)
    with Reader(tmp_path / "study.db") as reader:
        assert retry.BASE_SCORES in reader.values()
    store.set(retry.BASE_SCORES, {"scores": None, "error": "OSError: gone"})
    retry.reset_failed(study, store, progress)
    with Reader(tmp_path / "study.db") as reader:
        values = reader.values()
    assert retry.BASE_SCORES not in values
    (noted,) = values[retry.KEY]
    assert (noted["phase"], noted["method"], noted["reason"]) == ("base", None, "OSError: gone")
    assert progress.lines == [
        retry.NOTHING_FAILED,
        "retrying scores of the base model; before: failed: OSError: gone",
    ]


@pytest.mark.parametrize("status", list(Status))
def test_only_transient_failures_retried(tmp_path: Path, status: Status) -> None:
    """Only failures that may end otherwise are retried."""
    trial = make_trial("lora", "classify")
    study, store = begun(tmp_path, trial)
    store.save(TrialResult(trial.id, status, "its reason"))
    store.save_cost(Cost("lora", status, "its reason"))
    retry.reset_failed(study, store, RecordingProgress())
    tried = status in (Status.FAILED, Status.OUT_OF_MEMORY)
    with Reader(tmp_path / "study.db") as reader:
        assert (reader.finished_ids() == set()) is tried
        assert (reader.costs() == {}) is tried
        noted = reader.values().get(retry.KEY, [])
    assert [n["phase"] for n in noted] == (["probe", "final"] if tried else [])


def test_replanned_trials_come_last(tmp_path: Path) -> None:
    """Trials planned after a plan was dropped come last."""
    first, second, third = (make_trial("lora", "classify", seed=s) for s in range(3))
    _, store = begun(tmp_path, first, second)
    store.delete(plans=[first.id], log={})
    store.add_trials([third])
    with Reader(tmp_path / "study.db") as reader:
        assert [t.id for t in reader.planned_trials()] == [second.id, third.id]
    with closing(sqlite3.connect(tmp_path / "study.db")) as db:
        assert len(set(db.execute("select position from trials"))) == 2


def test_deletion_recorded_or_undone(tmp_path: Path) -> None:
    """A deleted result is recorded with its reason, or not deleted at all."""
    trial = make_trial("lora", "classify")
    _, store = begun(tmp_path, trial)
    store.save(TrialResult(trial.id, Status.FAILED, "its reason"))
    with pytest.raises(StatementError, match="not JSON"):
        store.delete(results=[trial.id], log={"retried": object()})
    with Reader(tmp_path / "study.db") as reader:
        assert reader.finished_ids() == {trial.id}


def test_retry_ignores_time_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry begins even after the time budget is spent.

    The user has asked for it by name, at the steps that all others had.
    """
    asked, other = (make_trial("ia3", "classify", seed=s) for s in range(2))
    control = make_trial("lora", "classify")
    _, store = begun(tmp_path, asked, other)
    store.set_all({rounds.SCHEDULE: {"looks": [2]}, retry.KEY: [{"trial_id": asked.id}]})
    monkeypatch.setattr(rounds.time_budget, "round_seconds", lambda *_: 1.0)
    study = SimpleNamespace(
        spec=None, entries=(control.method,), splits=SimpleNamespace(counts={}), folder=tmp_path
    )
    over: Any = SimpleNamespace(allows=lambda _: False, timings=())
    given: Any = (study, store, RecordingProgress(), None, None, None, over)
    begins = rounds._deadline_check(RunContext(*given), {"ia3": (0, 1)}, 1)
    assert begins is not None
    assert [begins(Segment((t,), 0, 30, "", "")) for t in (asked, other, control)] == [
        True, False, True,
    ]  # fmt: skip
    assert rounds._deadline_check(RunContext(*given), {"ia3": (0, 1)}, 2) is None


def test_cli_explains_and_retries(
    values: Values, tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The command line says how to retry and does so."""
    out = tmp_path / "out"
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def bakeoff(*options: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["bakeoff", "run", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, " ".join(said.err.split())

    faults.fail_on_test = _is_first_lora
    how = f"1 run failed. To retry: `bakeoff run {out} --retry`."
    code, _, err = bakeoff(str(tmp_path / "study.toml"), "--out", str(out))
    assert (code, how in err) == (4, True)
    code, _, err = bakeoff(str(out), "--json")
    assert (code, how in err) == (4, True)
    assert "To retry: `bakeoff run FOLDER --retry`." in (out / "report.html").read_text()
    faults.mend()
    code, printed, err = bakeoff(str(out), "--retry", "--json")
    assert code == 0
    assert "--retry" not in err
    assert "retrying lora replicate trial" in err
    assert len(json.loads(printed)["retried"]) == 1


def test_page_escapes_reasons() -> None:
    """The page shows reasons as text."""
    made = made_report()
    noted = {
        "at": "2026-01-01T00:00:00+00:00", "phase": "final", "method": "lora", "trial_id": "abc",
        "seed": 1, "setting": {"learning_rate": 1e-3}, "status": "failed", "reason": HOSTILE[0],
    }  # fmt: skip
    base = {**noted, "phase": "base", "method": None, "trial_id": None, "seed": None, "setting": {}}
    made["retried"] = [noted, base]
    jsonschema.validate(made, SCHEMA)
    page = render(made)
    assert HOSTILE[0] not in page
    assert page.count("2026-01-01T00:00:00+00:00") >= 2
