"""The benchmark of the time to a verdict: its arithmetic; the usual way trains the same trial."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bakeoff.core.errors import BakeoffError
from bakeoff.core.results import SplitScores, Status, TrialResult
from bakeoff.testing.tiny import rows, write_jsonl
from bakeoff.testing.trials import build_tiny_setup, make_trial, step_losses
from bakeoff.training.evaluate import item_losses

Script = Callable[[str], ModuleType]


@pytest.fixture
def script_module(script: Script) -> ModuleType:
    return script("time_to_verdict")


def result(step: int, seconds: tuple[float, float, float], *, tested: bool = False) -> TrialResult:
    """Return a result with seconds of training, evaluation and set-up since the beginning."""
    train, evaluation, load = seconds
    scores = SplitScores((1.0,), ("a",), None)
    return TrialResult(
        "a",
        Status.DONE if tested else Status.STOPPED,
        step=step,
        train_seconds=train,
        evaluation_seconds=evaluation,
        load_seconds=load,
        splits={"test": scores} if tested else {},
    )


def test_usual_way_extrapolated_by_hand(script_module: ModuleType) -> None:
    """A stopped trial costs its steps, a finalist no test, a chosen one everything."""
    sample = script_module.Sample(start=10.0, step=0.5, validation=2.0, test=40.0)
    stopped = script_module.Run("lora", 30, 1, False, {})
    finalist = script_module.Run("lora", 100, 3, False, {})
    chosen = script_module.Run("lora", 100, 3, True, {})
    assert [sample.trial(r) for r in (stopped, finalist, chosen)] == [27.0, 66.0, 106.0]
    other = script_module.Sample(start=1.0, step=0.0, validation=0.0, test=0.0)
    runs = [stopped, finalist, chosen, script_module.Run("ia3", 9, 9, True, {})]
    samples = {"lora": sample, "ia3": other}
    assert script_module.usual_seconds(runs, samples) == {"lora": 199.0, "ia3": 1.0}
    assert script_module.comparison(20.0, runs, samples) == {
        "seconds": 200.0,
        "ratio": 10.0,
        "by_method": {"lora": 199.0, "ia3": 1.0},
    }
    assert script_module.comparison(20.0, runs, {"lora": sample}) is None


def test_sample_divided_by_what_it_did(script_module: ModuleType) -> None:
    """Start is import, load and attach; TRL's steps take the place of the plain loop's."""
    seconds = {"import": 7.0, "load": 2.0, "attach": 1.0, "train": 50.0, "validation": 6.0}
    seconds |= {"answer": 38.0, "score": 0.5, "save": 1.5}
    plain = {"seconds": seconds, "steps": 100, "validations": 3}
    assert script_module.unit_costs(plain) == (10.0, 0.5, 2.0, 40.0)
    packed = {"seconds": {**seconds, "import": 9.0, "train": 20.0}, "steps": 100}
    assert script_module.unit_costs(plain, packed) == (12.0, 0.2, 2.0, 40.0)


def test_overhead_is_all_but_training_and_evaluation(script_module: ModuleType) -> None:
    """Set-up, saving and waiting workers are overhead."""
    stages = {"to step 3": (1.0, 0.5, 9.0), "to the end": (2.0, 0.5, 9.0)}
    runs = [script_module.Run("lora", 9, 1, False, stages)] * 2
    assert script_module.overhead_share(runs, 10.0, 1) == pytest.approx(0.2)
    assert script_module.overhead_share(runs, 10.0, 2) == pytest.approx(0.6)


def test_seconds_belong_to_stages(script_module: ModuleType) -> None:
    """Results hold sums: a stage has what its end has more than the one before."""
    rungs = [result(3, (1.0, 0.5, 2.0)), result(10, (4.0, 1.0, 3.0))]
    chosen = result(10, (4.0, 6.0, 3.5), tested=True)
    assert script_module.stages_of(rungs, chosen, 10) == {
        "to step 3": (1.0, 0.5, 2.0),
        "to the end": (3.0, 0.5, 1.0),
        "on test": (0.0, 5.0, 0.5),
    }
    # one that was not chosen ends with the same result and a reason; one setting needs no race
    assert script_module.stages_of(rungs, rungs[-1], 10).keys() == {"to step 3", "to the end"}
    assert script_module.stages_of([], chosen, 10) == {"to the end": (4.0, 6.0, 3.5)}


def test_wall_time_by_phase(script_module: ModuleType) -> None:
    """Every second belongs to one phase, and stages of all rounds are one."""
    events = [(5.0, None), (7.0, "Cost probes"), (9.0, None), (10.0, "Round 1, to step 30, wider")]
    events += [(14.0, "Round 2, to step 30"), (20.0, "Round 2, to the end"), (21.0, "Reload")]
    found = script_module.phase_seconds(1.0, 30.0, [*events, (24.0, None)])
    assert found == {
        "start and import": 4.0,
        "checks": 2.0,
        "cost probes": 3.0,
        "to step 30": 10.0,
        "to the end": 1.0,
        "reload": 3.0,
        "report": 6.0,
    }
    assert sum(found.values()) == 29.0


def test_study_is_changed_and_kept(script_module: ModuleType, tmp_path: Path) -> None:
    """The options change the study; a folder keeps to one study."""
    given = argparse.Namespace(
        study=script_module.DEMO, seeds=2, methods="lora,oft", steps=9, limit="108/40/80",
        model=None,
    )  # fmt: skip
    values = script_module.study_values(given)
    assert values["budget"]["seeds"] == 2
    assert "most" not in values["budget"]
    assert values["methods"] == {"control": "lora", "contenders": ["oft"]}
    assert values["method"].keys() == {"lora", "oft"}
    assert values["data"]["limit"] == {"train": 108, "validation": 40, "test": 80}
    script_module.parse_spec(values)
    folder = script_module.Folder(tmp_path)
    folder.ask("seeds = 2")
    folder.ask("seeds = 2")
    assert tomllib.loads(folder.asked.read_text()) == {"seeds": 2}
    with pytest.raises(BakeoffError, match="other-study"):
        folder.ask("seeds = 3")


def test_killed_run_ends_at_its_last_event(script_module: ModuleType, tmp_path: Path) -> None:
    """A run without an end is counted up to its last event; a study ends with code 0 or 4."""
    folder = script_module.Folder(tmp_path)
    folder.study.mkdir()
    lines = "".join(
        f'{{"time": "1970-01-01T00:00:{s}+00:00", "event": "say"}}\n' for s in (12, 15, 32)
    )
    (folder.study / script_module.LOG).write_text(lines)
    marks = ['{"start": true, "at": 10}', '{"start": true, "at": 30}']
    (tmp_path / "runs.jsonl").write_text("\n".join(marks) + "\n")
    assert [run[:2] for run in folder.runs()] == [(10, 15.0), (30, 32.0)]
    assert not folder.ended()
    folder.mark(code=4)
    assert folder.ended()
    assert [run[3] for run in folder.runs()] == [False, True]


@pytest.mark.parametrize("method", ["ln_tuning", "full"])
def test_usual_way_trains_the_same(
    script: Script, tiny_llama: Path, tmp_path: Path, method: str
) -> None:
    """Methods that draw nothing have the same validation loss after the same steps."""
    side, usual = script("usual_side"), script("usual_trial")
    trial = make_trial(method, "sft", steps=4, rate=3e-3, threads=1)
    setup = build_tiny_setup(trial, tiny_llama, tmp_path)
    step_losses(setup, 4)
    ours = float(item_losses(setup, setup.examples("validation")).mean())
    write_jsonl(tmp_path / "data/test.jsonl", rows()[:3])
    job: dict[str, Any] = {
        **side.job_of(trial, str(tiny_llama), tmp_path / "data"),
        **side.write_config(trial, str(tiny_llama), tmp_path),
        "trainer": "torch",
        "threads": [1],
        "validations": [1, 4],
        "rows": 96,
        "out": str(tmp_path / "saved"),
    }
    found = usual.run(job)
    assert len(found["losses"]) == 2
    assert found["losses"][-1] == pytest.approx(ours, rel=1e-5)
    assert len(found["answers"]) == 3
    assert list((tmp_path / "saved").glob("*.safetensors"))
    parts = {"load", "attach", "train", "validation", "answer", "save", usual.NOT_COUNTED}
    assert set(found["seconds"]) == parts


def test_methods_without_a_usual_way_are_refused(
    script: Script, tiny_llama: Path, tmp_path: Path
) -> None:
    """A method whose steps need more than PEFT is refused, not timed without them."""
    with pytest.raises(BakeoffError, match="no-usual-way"):
        script("usual_side").write_config(make_trial("adalora", "sft"), str(tiny_llama), tmp_path)
