"""Curves for tracking tools: what every exporter must do, and what each tool reads back.

The tools are extras; what needs one that is not installed is skipped.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.records import hits, make_result, make_trial

from bakeoff.core import plugins
from bakeoff.core.errors import EnvironmentProblem, UsageError
from bakeoff.core.results import CurvePoint, Status
from bakeoff.integrations.export_curves import export_curves
from bakeoff.integrations.trackers import Exporter, TrackerRun, tracker_runs
from bakeoff.study.storage.database import Writer

NAMES = plugins.list_plugins("integrations.trackers")
PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "mlflow": "mlflow"}
INSTALLED = {
    name: importlib.util.find_spec(module) is not None for name, module in PACKAGES.items()
}
FINAL = "lora/learning_rate=0.001/seed=1"
SEARCH = "lora/learning_rate=0.01/seed=0"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study by hand: one search trial, one final one, one that failed at once."""
    folder = tmp_path / "study"
    folder.mkdir()
    with Writer(folder / "study.db") as store:
        search, final = make_trial("lora", 1e-2), make_trial("lora", 1e-3, 1, "final")
        failed = make_trial("oft", 1e-3, 1, "final")
        store.add_trials([search, final, failed])
        store.save(make_result(search, losses=(2.0, float("nan"))))
        store.save(make_result(final, losses=(1.0, 0.5), test=hits(30, 40)))
        store.save(make_result(failed, losses=(), status=Status.FAILED, reason="x"))
        metric = {"name": "accuracy", "better": "higher", "unit": "fraction"}
        benchmark = {
            "source": "s", "benchmark": "b", "reported": {}, "no_interval": None, "differing": {},
            "name": "hand made", "base": "b", "task": "sft", "margin": 0.01, "steps": 100,
            "metric": metric, "n_items": {"test": 40}, "methods": ["lora", "oft"], "warnings": [],
            "provenance": {},
        }  # fmt: skip
        store.set_all({"imported": benchmark, "frozen": {}})
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.endswith(("-shm", "-wal"))
    }


def test_trials_become_runs() -> None:
    final = make_trial("lora", 1e-3, 1, "final")
    odd = make_trial("lora", 1e-3, 1, "search")  # the same name: told apart by its id
    odd.setting["target"] = "../<x>\x1b"
    pairs = [
        (final, make_result(final, losses=(1.0, None), test=hits(30, 40))),
        (final, make_result(final)), (odd, make_result(odd)), (odd, None),
    ]  # fmt: skip
    first, second, third = tracker_runs(pairs, "token f1")
    assert (first.name, first.last_step) == (FINAL, 100)
    assert first.summary == {"validation_token_f1": 0.5, "test_token_f1": 0.75}
    assert first.points() == [(50, {"train_loss": 1.0, "validation_loss": 1.0})]
    assert first.parameters["learning_rate"] == 1e-3
    assert first.parameters["phase"] == "final"
    assert second.name == f"{FINAL},{final.id}"
    assert third.name == "lora/learning_rate=0.001,target=.._x_/seed=1"


def test_nonfinite_losses_omitted() -> None:
    """Losses that are not finite are omitted."""
    run = TrackerRun("x", {}, (CurvePoint(1, math.inf, None), CurvePoint(2, math.nan, 0.5)), {})
    assert run.points() == [(2, {"validation_loss": 0.5})]


@pytest.mark.parametrize("name", NAMES)
def test_missing_tool_names_package(
    name: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter without its tool says what to install."""

    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{module}'")

    monkeypatch.setattr(
        "bakeoff.integrations.export_curves.plugins.load_plugin", lambda *_: _Module(LOADED[name])
    )
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    before = tree(study)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentProblem) as refused:
        export_curves(study, name, study / "curves" / name)
    assert refused.value.code == "exporter-missing"
    assert f"pip install 'bakeoff[{name}]'" in refused.value.try_
    assert tree(study) == before
    assert not (study / "curves").exists()


class _Module:
    def __init__(self, exporter: Exporter) -> None:
        self.EXPORTER = exporter


LOADED = {
    name: plugins.load_plugin("integrations.trackers", name, "exporter").EXPORTER for name in NAMES
}


def test_failed_exporter_leaves_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that fails leaves no partial files."""

    class Broken:
        def write(self, study: str, runs: Any, folder: Path) -> None:
            (folder / "half").mkdir()
            (folder / "half" / "file").write_text("x")
            raise RuntimeError("the tool has changed\nin many ways")

        def view_command(self, study: str, folder: Path) -> str:
            return ""

    monkeypatch.setattr(
        "bakeoff.integrations.export_curves.plugins.load_plugin", lambda *_: _Module(Broken())
    )
    before = tree(study)
    with pytest.raises(EnvironmentProblem, match="RuntimeError: the tool has changed") as refused:
        export_curves(study, "mlflow", tmp_path / "new" / "out")
    assert refused.value.code == "export-failed"
    assert tree(study) == before
    assert not (tmp_path / "new").exists()


def test_existing_files_not_overwritten(study: Path, tmp_path: Path) -> None:
    """Existing files are not overwritten."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    with pytest.raises(UsageError, match="folder-taken"):
        export_curves(study, "mlflow", tmp_path / "taken")
    with pytest.raises(UsageError, match="did you mean 'mlflow'"):
        export_curves(study, "mlflw", tmp_path / "x")


def read_tensorboard(folder: Path) -> dict[str, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file.parent)).Reload()
        scalars = {
            tag: [(e.step, e.value) for e in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
        hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        found[str(file.parent.relative_to(folder))] = {**scalars, "parameters": str(hparams)}
    return found


def read_trackio(folder: Path) -> dict[str, dict[str, Any]]:
    import sqlite3

    found: dict[str, dict[str, Any]] = {}
    with sqlite3.connect(folder / "handmade.db") as rows:
        for run, step, metrics in rows.execute("SELECT run_name, step, metrics FROM metrics"):
            for name, value in json.loads(metrics).items():
                found.setdefault(run, {}).setdefault(name, []).append((step, value))
        for run, config in rows.execute("SELECT run_name, config FROM configs"):
            found[run]["parameters"] = str(config)
    return found


def read_mlflow(folder: Path) -> dict[str, dict[str, Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "hand made"]
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        history = {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        found[run.info.run_name] = {**history, "parameters": str(run.data.params)}
    return found


READERS: dict[str, Callable[[Path], dict[str, dict[str, Any]]]] = {
    "tensorboard": read_tensorboard, "trackio": read_trackio, "mlflow": read_mlflow,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_tool_reads_exported_curves(
    name: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker reads the exported curves.

    Every exporter must pass this: add its reader to READERS.
    """
    if not INSTALLED[name]:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out, before = tmp_path / "out", tree(study)
    command = [sys.executable, "-m", "bakeoff", "export-curves", str(study), "--to", name]
    done = subprocess.run(
        [*command, "--out", str(out), "--json"], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["runs"], told["folder"]) == (2, str(out))
    assert str(out) in told["look"]
    assert tree(study) == before
    found = READERS[name](out)
    assert set(found) == {FINAL, SEARCH}
    assert found[FINAL]["train_loss"] == [(50, 1.0), (100, 0.5)]
    assert found[FINAL]["validation_loss"] == [(50, 1.0), (100, 0.5)]
    assert found[FINAL]["test_accuracy"] == [(100, 0.75)]
    assert found[SEARCH]["validation_loss"] == [(50, 2.0)]
    assert "test_accuracy" not in found[SEARCH]
    assert "learning_rate" in found[FINAL]["parameters"]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
