"""Whatever a study file, its rows, a method file or a result file say: a refusal, no traceback.

`python benchmarks/fuzz.py` runs thousands of these; here are the same few hundred in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = {"studies": 200, "rows": 200, "methods": 120, "imports": 80}
REFUSED = {"studies": "study-invalid", "rows": "data-broken", "methods": "method-invalid"}


@pytest.fixture
def fuzz(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("fuzz")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_no_file_makes_bakeoff_crash(fuzz: ModuleType, tmp_path: Path, kind: str) -> None:
    fuzz.prepare(tmp_path, tiny=False)
    counts, faults = fuzz.run(kind, EXAMPLES[kind], tmp_path, whole=False, seed=False)
    assert [outcome.said[-2000:] for _, outcome in faults] == []
    exits: Counter[int] = Counter()
    for (exit_code, _), n in counts.items():
        exits[exit_code] += n
    assert exits.total() >= EXAMPLES[kind] // 2
    # the examples are near enough to good ones to get past the first check, and bad enough
    if kind in REFUSED:
        assert any(code == fuzz.ACCEPTED for _, code in counts)
        assert any(code == REFUSED[kind] for _, code in counts)


def test_nor_in_a_workers_checks(fuzz: ModuleType, tmp_path: Path) -> None:
    fuzz.prepare(tmp_path, tiny=True)
    for kind in ("studies", "rows"):
        counts, faults = fuzz.run(kind, 15, tmp_path, whole=True, seed=False)
        assert [outcome.said[-2000:] for _, outcome in faults] == []
        assert counts.total() > 0


def test_valid_study_accepted_crash_detected(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A valid study is accepted and a crash is detected."""
    fuzz.prepare(tmp_path, tiny=False)
    case = fuzz.Case(fuzz.files())
    assert fuzz.drive(case, tmp_path).code == fuzz.ACCEPTED

    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bakeoff.study.setup.open_study.load_methods", crash)
    outcome = fuzz.drive(case, tmp_path)
    assert outcome.fault
    assert outcome.exit == 1
