"""The studies in examples/ run from end to end: all their methods, small, on a tiny base.

The real runs take minutes and a real model; here the file's own data, columns, task, methods and
metric are used, so that no key and no name in it can go stale.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers.study_runs import use_inline_executor

from bakeoff import api
from bakeoff.study.config import StudySpec, parse_spec, read_spec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
SMALL = sorted((p for p in EXAMPLES if p.stem.startswith("sft-smollm2")), key=lambda p: p.stem)
QUANTISED = next(p for p in EXAMPLES if p.stem.startswith("nf4"))


def small(path: Path, base: Path) -> StudySpec:
    """Return the study with a tiny base, few rows, one setting, one seed and three steps.

    A file goes without the contenders that one before it has run.
    """
    values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    values["base"]["model"] = str(base)
    values["data"]["limit"] = {"train": 24, "validation": 10, "test": 8}
    values["task"] |= {"max_new_tokens": 4}
    for method in values["method"].values():
        method["learning_rates"] = method["learning_rates"][:1]
    before = SMALL[: SMALL.index(path)] if path in SMALL else SMALL
    tried = {name for other in before for name in read_spec(other).methods.contenders}
    if path == QUANTISED:
        tried -= {"full"}  # a row with its reason there
    own = values["methods"]["contenders"]
    values["methods"]["contenders"] = [name for name in own if name not in tried]
    for name in tried:
        values["method"].pop(name, None)
    values["budget"] |= {"steps": 3, "settings": 1, "seeds": 1, "extend": 0, "validations": 1}
    values["engine"] = {
        "executor": "inline", "device": "cpu", "threads": 1, "precision": "fp32", "lanes": "off",
    }  # fmt: skip
    return parse_spec(values)


def test_both_ask_the_same_question() -> None:
    cpu, gpu = (read_spec(path) for path in SMALL)
    assert (cpu.base, cpu.data.columns) == (gpu.base, gpu.data.columns)
    assert (cpu.task.kind, cpu.task.metric) == (gpu.task.kind, gpu.task.metric)
    assert min(len(s.methods.contenders) for s in (cpu, gpu)) >= 5
    assert gpu.data.limit.train is gpu.data.limit.test is None


@pytest.mark.parametrize("path", SMALL, ids=lambda p: p.stem)
def test_example_runs_all_methods(
    path: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example runs with all its methods."""
    # a process for each cost probe is most of the time here, and another test's business
    use_inline_executor(monkeypatch)
    spec = small(path, tiny_llama)
    report = api.run(spec, path.parent, tmp_path / "out")
    assert report["study"]["metric"] == "json_match"
    assert report["base"]["score"]["estimate"] == 0, "random weights say no JSON"
    found = {m["method"]: m for m in report["methods"]}
    assert set(found) == {spec.methods.control, *spec.methods.contenders}
    for name, method in found.items():
        assert method["score"] is not None, (name, method)
        assert method["gain"]["estimate"] == pytest.approx(method["score"]["estimate"])
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_four_bit_example_names_incompatible(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 4-bit example says which methods cannot train there."""
    use_inline_executor(monkeypatch)
    spec = small(QUANTISED, tiny_llama)
    assert spec.base.quantize == "nf4"
    report = api.run(spec, QUANTISED.parent, tmp_path / "out")
    found = {m["method"]: m for m in report["methods"]}
    assert found["lora"]["score"] is not None
    assert set(found) == {"lora", "pissa", "full"}
    for name in ("pissa", "full"):
        assert found[name]["status"] == "incompatible"
        assert "which are quantised" in found[name]["reason"]
