"""Kill a study with SIGKILL at a chosen moment and see what is left: for tests and benchmarks.

The study runs inline in a process of its own, so that a moment inside a step is as near as one
inside a transaction. Each function of ``WATCHED`` gives two moments a call: before it and after it.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bakeoff import api
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import rows, save_bert, write_jsonl
from helpers.study_runs import use_inline_executor

WATCHED = {
    "a step": "bakeoff.engine.loop:Stepper.step",
    "a backward pass": "bakeoff.engine.lanes.lanes:Lanes.backward",
    "the optimizer": "bakeoff.engine.optim:LaneAdamW.step",
    "a reading": "bakeoff.training.segment:TrainingLog.read",
    "a state": "bakeoff.training.checkpoints:save",
    "the disk's word": "os:fsync",
    "a renaming": "pathlib:Path.replace",
    "an adapter": "bakeoff.training.segment:_save",
    "a trial's folder": "bakeoff.training.segment:write_result",
    "a segment": "bakeoff.training.segment:run_segment",
    "scoring": "bakeoff.training.segment:score_split",
    "a cost probe": "bakeoff.training.preflight.cost_probe:probe_cost",
    "a cost's row": "bakeoff.study.storage.database.writer:Writer.save_cost",
    "a plan": "bakeoff.study.storage.database.writer:Writer.add_trials",
    "results' rows": "bakeoff.study.storage.database.writer:Writer.save_group",
    "decisions' rows": "bakeoff.study.storage.database.writer:Writer.save_decisions",
    "values' rows": "bakeoff.study.storage.database.writer:Writer.set_all",
    "a commit": "sqlalchemy.engine.base:RootTransaction._do_commit",
    "dropped states": "bakeoff.study.storage.study_dir:delete_checkpoints",
    "frozen data": "bakeoff.study.storage.study_dir:freeze_data",
    "the study file": "bakeoff.study.storage.study_dir:write_study_file",
    "the report": "bakeoff.api:report",
    "the page": "bakeoff.report:render",
}
"""What is watched, by the name of its moments."""

MEASURED = ("seconds", "pareto", "front", "recommendation", "timing", "provenance", "race")
"""Parts of a report that hold what is measured in time or memory, or say where a study ran."""
Moment = tuple[str, int]
"""A moment's name, ``before a step`` or ``after a step``, and which one of them it is, from 0."""


def small(source: Path) -> dict[str, Any]:
    """Write a base and data into ``source``; return a study of them that takes seconds."""
    return {
        "name": "tiny",
        "base": {"model": str(save_bert(source / "base"))},
        "data": {"train": str(write_jsonl(source / "rows.jsonl", rows()))},
        "task": {"kind": "classify", "max_length": 32, "head_learning_rate": 1e-2},
        "verdict": {"check_head": False},
        "methods": {"control": "lora", "contenders": ["ln_tuning"]},
        "budget": {
            "steps": 20, "batch_size": 4, "settings": 3, "seeds": 2, "validations": 2, "extend": 0,
        },
        "engine": {"executor": "inline", "device": "cpu", "threads": 1, "precision": "fp32"},
    }  # fmt: skip


def stable_numbers(found: Any) -> Any:
    """Leave out what is measured in time or memory, or says where a study ran."""
    if isinstance(found, dict):
        return {
            k: stable_numbers(v) for k, v in found.items()
            if k not in MEASURED and not k.endswith(("seconds", "bytes", "probability", "_ms"))
            and k not in ("cost", "hours", "step_milliseconds", "traceback")
        }  # fmt: skip
    return [stable_numbers(v) for v in found] if isinstance(found, (list, tuple)) else found


def trial_rows(out: Path) -> dict[str, Any]:
    """Return the rows of the trials that have ended, as plain values."""
    try:
        trials = api.read_trials(out)
    except Exception:  # killed before there was a database
        return {}
    kept = {t.id: r.to_json() for t, r in trials if r is not None}
    return {name: stable_numbers(json.loads(json.dumps(value))) for name, value in kept.items()}


def leftovers(out: Path) -> list[Path]:
    """Return half-written files, and states that nothing will go on from."""
    return [p for p in out.rglob("*") if p.suffix == ".tmp" or p.parent.name == "state"]


def moments(values: dict[str, Any], source: Path, out: Path) -> list[Moment]:
    """Run a study to its end; return its moments in order."""
    log = out.parent / f"{out.name}.moments"
    _in_a_process(values, source, out, None, log)
    seen: dict[str, int] = {}
    found = []
    for name in log.read_text(encoding="utf-8").splitlines():
        found.append((name, seen.setdefault(name, 0)))
        seen[name] += 1
    return found


def run(
    values: dict[str, Any], source: Path, out: Path, killed: Moment | None = None, **asked: Any
) -> int:
    """Run a study, or go on with it, to its end or to a moment; return the exit code.

    ``asked`` is what ``api.run`` takes beside.
    """
    return _in_a_process(values, source, out, killed, None, **asked)


def _in_a_process(
    values: dict[str, Any], source: Path, out: Path, killed: Moment | None, log: Path | None,
    **asked: Any,
) -> int:  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.kills", "bakeoff.training.worker_preload"])
    process = context.Process(target=_study, args=(values, source, out, killed, log), kwargs=asked)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _study(
    values: dict[str, Any], source: Path, out: Path, killed: Moment | None, log: Path | None,
    **asked: Any,
) -> None:  # fmt: skip
    # cost probes too: a moment in them is one of this process
    use_inline_executor(pytest.MonkeyPatch())
    seen: dict[str, int] = {}

    def at(name: str) -> None:
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(name + "\n")
        if killed is not None and name == killed[0]:
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > killed[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    for name, where in WATCHED.items():
        _watch(where, name, at)
    api.run(parse_spec(values), source, out, **asked)


def _watch(where: str, name: str, at: Callable[[str], None]) -> None:
    module, _, path = where.partition(":")
    *holders, last = path.split(".")
    holder: Any = importlib.import_module(module)
    for part in holders:
        holder = getattr(holder, part)
    own = getattr(holder, last)

    @functools.wraps(own)
    def watched(*args: Any, **kwargs: Any) -> Any:
        at(f"before {name}")
        try:
            return own(*args, **kwargs)
        finally:
            at(f"after {name}")

    setattr(holder, last, watched)
