"""A study that is stopped goes on to the same numbers; a base that stays loaded stays pristine."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from helpers.command import Started, bakeoff
from torch import nn

from bakeoff import api
from bakeoff.core import trial_dir
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import Segment
from bakeoff.engine import base_cache
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.base_cache import BaseCache, cache_base
from bakeoff.engine.heartbeat import listen
from bakeoff.testing.tiny import write_splits
from bakeoff.testing.trials import make_trial
from bakeoff.training import setup
from bakeoff.training.segment import run_segment

LANES = dataclasses.asdict(
    Switches(lanes=True, packing=False, loss=True, compile=False, graphs=False)
)


class Asks:
    """Asks for the end of the work after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def beat(self) -> None:
        self.left -= 1

    def stop_requested(self) -> bool:
        return self.left <= 0


def untimed(result: TrialResult) -> TrialResult:
    return dataclasses.replace(
        result, train_seconds=None, evaluation_seconds=None, load_seconds=None, adapter_bytes=None
    )


@pytest.mark.parametrize(
    ("method", "after"), [("lora", 1), ("lora", 11), ("adalora", 1), ("adalora", 11), ("full", 4)]
)
def test_paused_segment_same_numbers(
    method: str, after: int, tiny_bert: Path, tmp_path: Path
) -> None:
    """A paused segment ends with the same numbers."""
    trials = tuple(make_trial(method, "classify", seed=s, steps=12, validations=3) for s in (1, 2))
    found = []
    for name in ("whole", "paused"):
        (tmp_path / name).mkdir()
        data = write_splits(tmp_path / name / "data")
        shutil.copyfile(data / "validation.jsonl", data / "test.jsonl")
        segment = Segment(trials, 0, 12, str(tmp_path / name), str(tiny_bert), {"switches": LANES})
        if name == "paused":
            with listen(Asks(after)):
                first = run_segment(segment).results
            assert {r.status for r in first} == {Status.STOPPED}
            (step,) = {r.step for r in first}
            assert step is not None
            assert 0 < step < 12
            segment = dataclasses.replace(segment, start=step)
        found.append(run_segment(segment).results)
    whole, paused = found
    assert [r.reason for r in whole] == [None, None]
    for one, other in zip(map(untimed, paused), map(untimed, whole), strict=True):
        for field in dataclasses.fields(TrialResult):
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    saved = [
        {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in (tmp_path / name / "trials").rglob("*.safetensors")
            if p.parent.name != trial_dir.CHECKPOINTS
        }
        for name in ("whole", "paused")
    ]
    assert saved[0] == saved[1]
    assert saved[0]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_study_resumes(
    sent: signal.Signals, code: int, study_values: dict[str, Any], tmp_path: Path
) -> None:
    """A stopped study resumes."""
    study_values["engine"]["executor"] = "process"
    study_values["budget"] |= {"steps": 200, "validations": 1, "race": "off", "settings": 1}
    study_values["budget"]["seeds"] = 1
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text(tomli_w.dumps(study_values))
    arguments = ("run", str(study), "--out", str(out))
    process = Started(*arguments, cwd=tmp_path)
    deadline = time.monotonic() + 300
    log = out / "log.jsonl"
    while not log.exists() or b"Replicates" not in log.read_bytes():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    # to the whole group, as a terminal and as job systems do
    process.signal_all(sent)
    ended = process.end(300)
    assert ended.returncode == code, ended.stderr
    assert "Run the same command to resume" in ended.stderr
    assert "Traceback" not in ended.stderr
    again = bakeoff(*arguments, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert all(m["score"] for m in report["methods"])


def test_cached_base_is_pristine(tiny_bert: Path, tmp_path: Path) -> None:
    """A cached base model is returned unmodified."""
    trial = make_trial("lora", "classify")
    data = write_splits(tmp_path / "data")
    fresh = setup.build_setup([trial], str(tiny_bert), data).model.state_dict()
    with cache_base():
        for method in ("full", "pissa", "lora"):
            setup.build_setup([make_trial(method, "classify")], str(tiny_bert), data)
        kept = setup.build_setup([trial], str(tiny_bert), data).model.state_dict()
    assert kept.keys() == fresh.keys()
    assert all(torch.equal(kept[name], fresh[name]) for name in fresh)


def test_modified_base_reloaded() -> None:
    """A base model that was modified is loaded again."""
    loads = []

    def load() -> nn.Module:
        torch.manual_seed(0)
        loads.append(nn.Linear(3, 5))
        return loads[-1]

    cache = BaseCache()
    first = cache.get("a", load)
    assert cache.get("a", load) is not first
    assert len(loads) == 1, "the same tensors, other modules"
    assert cache.get("b", load) is not first
    assert len(loads) == 2, "another base"
    with torch.no_grad():
        cache.get("b", load).weight[1, 2] += 1e-3  # type: ignore[operator,index]
    again = cache.get("b", load)
    assert len(loads) == 3
    assert torch.equal(again.weight, loads[0].weight)  # type: ignore[arg-type]


def test_replaced_base_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that a method replaces is not kept in the cache."""
    monkeypatch.setattr(base_cache, "SMALL_BYTES", 0)
    cache = BaseCache()
    model: Any = cache.get("a", lambda: nn.Linear(3, 5))
    cache.release_if_replaced()
    assert not cache.is_empty
    model.weight.data = model.weight.data.double()
    cache.release_if_replaced()
    assert cache.is_empty


def test_patience_from_study_file(study_values: dict[str, Any], tmp_path: Path) -> None:
    """The patience comes from the study file."""
    study_values["engine"]["patience"] = 90
    report = api.run(api.parse_spec(study_values), tmp_path, tmp_path / "out")
    assert report["complete"]
    study_values["engine"]["patience"] = 5  # mere speed: the study goes on
    api.run(api.parse_spec(study_values), tmp_path, tmp_path / "out")
