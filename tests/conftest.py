"""Tiny models and a tiny study that every test can train in a second."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
from helpers import command
from helpers.executors import (
    Recorder,
    StandIns,
    current_factory,
    make_inline,
    use_executors,
)

from bakeoff.core import jobs
from bakeoff.core.results import Cost, Status
from bakeoff.engine.accelerators import STRICT_VARIABLE, Switches
from bakeoff.testing.tiny import rows, save_bert, save_llama, write_jsonl

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# an accelerator that fails unexpectedly must not go unnoticed, in workers neither
os.environ.setdefault(STRICT_VARIABLE, "1")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare studies that run in this process from looking through all of torch, as workers are."""
    gc.collect()
    gc.freeze()
    users = (vars(item.module).values() for item in session.items if hasattr(item, "module"))
    if any(command.bakeoff in own or command.Started in own for own in users):
        command.warm_up()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers, 32 wide."""
    return save_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, 32 wide."""
    return save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def bases(tiny_bert: Path, tiny_llama: Path) -> dict[str, Path]:
    """The base that each task is tried on."""
    return {"classify": tiny_bert, "sft": tiny_llama}


@pytest.fixture(scope="session")
def make_study(tiny_bert: Path) -> Callable[[Path], dict[str, Any]]:
    """Make a study that trains in seconds, its data in a folder: two of each."""

    def build(folder: Path) -> dict[str, Any]:
        data = write_jsonl(folder / "rows.jsonl", rows())
        return {
            "name": "tiny",
            "base": {"model": str(tiny_bert)},
            "data": {"train": str(data)},
            "task": {"kind": "classify", "max_length": 32, "head_learning_rate": 1e-2},
            "methods": {"control": "lora", "contenders": ["ia3"]},
            "method": {
                "ia3": {
                    "config": {
                        "target_modules": ["key", "value", "output.dense"],
                        "feedforward_modules": ["output.dense"],
                    }
                }
            },
            "verdict": {"check_head": False},
            "budget": {"steps": 6, "batch_size": 8, "settings": 2, "seeds": 2, "validations": 2},
            "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
        }

    return build


@pytest.fixture
def study_values(make_study: Callable[[Path], dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """A study that trains in seconds: two methods, two settings, two seeds."""
    return make_study(tmp_path)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a benchmark script as `python benchmarks/<name>.py` would find it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def study_file(study_values: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny study as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(study_values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def costs_are_known() -> Iterator[StandIns]:
    """Executors in this process that do not measure costs: probes take most of the time."""
    lanes = Switches(lanes=True, packing=False, loss=True, compile=False, graphs=False)
    known = {"switches": dataclasses.asdict(lanes), "reasons": {}}

    def probe(value: dict[str, Any]) -> dict[str, Any]:
        name = value["trials"][0]["method"]["name"]
        return Cost(name, Status.DONE, step_milliseconds=1.0, engine=known).to_json()

    executors = StandIns(make_inline, {jobs.PROBE_COST: probe})
    with pytest.MonkeyPatch.context() as patch:
        use_executors(patch, executors)
        yield executors


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the trials that were trained, one for each segment that they were in."""
    recorder = Recorder(current_factory())
    use_executors(monkeypatch, recorder)
    return recorder.trained
