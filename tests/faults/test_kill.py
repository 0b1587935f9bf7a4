"""kill -9 at any moment: what was acknowledged is there, and the study ends with the same numbers.

Faults 1 to 3 and 9 of docs/reliability.md. ``benchmarks/crash.py`` kills 300 times.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bakeoff import api
from bakeoff.results import TrialResult
from bakeoff.testing import kills
from bakeoff.testing.tiny import rows, save_bert, write_jsonl
from bakeoff.trial import Trial

TWICE = (
    "a step", "the optimizer", "a state", "the disk's word", "a renaming", "a trial's folder",
    "results' rows", "decisions' rows", "a commit", "dropped states",
)  # fmt: skip
"""Before and after these: in between lies what must not be torn."""
MOMENTS = [
    f"{when} {name}"
    for name in kills.WATCHED
    for when in (("before", "after") if name in TWICE else ("before",))
]
MEASURED = ("seconds", "pareto", "front", "recommendation", "timing", "provenance", "race")


class Whole(NamedTuple):
    """A study that nothing interrupted."""

    values: dict[str, Any]
    source: Path
    report: dict[str, Any]
    rows: dict[str, Any]
    moments: list[kills.Moment]


def numbers(found: Any) -> Any:
    """Leave out what is measured in time or memory, or says where a study ran."""
    if isinstance(found, dict):
        return {
            k: numbers(v) for k, v in found.items()
            if k not in MEASURED and not k.endswith(("seconds", "bytes", "probability", "_ms"))
            and k not in ("cost", "hours", "step_milliseconds", "traceback")
        }  # fmt: skip
    return [numbers(v) for v in found] if isinstance(found, (list, tuple)) else found


def ended(out: Path) -> dict[str, Any]:
    """Return the rows of the trials that have ended, as plain values."""
    try:
        trials: tuple[tuple[Trial, TrialResult | None], ...] = api.read_trials(out)
    except Exception:  # killed before there was a database
        return {}
    kept = {t.id: r.to_json() for t, r in trials if r is not None}
    return {name: numbers(json.loads(json.dumps(value))) for name, value in kept.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    source = tmp_path_factory.mktemp("whole")
    values: dict[str, Any] = {
        "name": "tiny",
        "base": {"model": str(save_bert(source / "base"))},
        "data": {"train": str(write_jsonl(source / "rows.jsonl", rows()))},
        "task": {"kind": "classify", "max_length": 32},
        "methods": {"control": "lora", "contenders": ["ln_tuning"]},
        "budget": {
            "steps": 20, "batch_size": 4, "settings": 3, "seeds": 2, "validations": 2, "extend": 0,
        },
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
    }  # fmt: skip
    found = kills.moments(values, source, source / "out")
    report = json.loads((source / "out" / "report.json").read_text())
    return Whole(values, source, numbers(report), ended(source / "out"), found)


def test_the_moments_are_spread_over_the_whole_study(whole: Whole) -> None:
    assert set(MOMENTS) <= {name for name, _ in whole.moments}
    assert len(MOMENTS) >= 30


@pytest.mark.parametrize("name", MOMENTS)
def test_a_killed_study_ends_with_the_same_numbers(name: str, whole: Whole, tmp_path: Path) -> None:
    times = sum(n == name for n, _ in whole.moments)
    out = tmp_path / "out"
    code = kills.run(whole.values, whole.source, out, (name, times // 2))
    assert code == -signal.SIGKILL
    before = ended(out)
    assert before.items() <= whole.rows.items(), "a row that is not what the whole study has"
    assert kills.run(whole.values, whole.source, out) == 0
    after = ended(out)
    assert before.items() <= after.items(), "an acknowledged row was lost or changed"
    assert after == whole.rows
    assert numbers(json.loads((out / "report.json").read_text())) == whole.report
    leftovers = [p for p in out.rglob("*") if p.suffix == ".tmp" or p.parent.name == "state"]
    assert leftovers == []
