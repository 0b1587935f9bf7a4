"""The benchmark scripts run and refuse what cannot be compared; nothing is said of speed here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FEW = ["--json", "--lanes", "2", "--pairs", "2", "--steps", "2", "--threads", "1"]


def test_quick_gives_three_finite_figures(
    script: Callable[[str], ModuleType], study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = study_file.with_suffix(".json")
    arguments = [*FEW, "--quick", "--study", str(study_file), "--out", str(out)]
    assert script("lanes_cpu").main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"ratio_solo", "ratio_lanes", "dtype"}
    assert found["dtype"] in ("bf16", "fp32")
    assert all(math.isfinite(found[k]) and found[k] > 0 for k in ("ratio_solo", "ratio_lanes"))
    whole = json.loads(out.read_text(encoding="utf-8"))
    assert {"date", "machine", "versions", "lanes", "timed_steps", "cases"} <= set(whole)
    (case,) = whole["cases"]
    assert case["largest_loss_difference"] <= 1e-4
    assert case["pairs"] == 2
    rates = case["tokens_per_second"]
    assert {"solo", "lanes", "Trainer (fp32 weights)"} <= set(rates)
    assert all(r["min"] <= r["median"] <= r["max"] for r in rates.values())
    # the stronger opponent is the one that is quoted
    trainers = {n: r["median"] for n, r in rates.items() if n.startswith("Trainer")}
    assert case["faster_trainer"] == max(trainers, key=lambda n: trainers[n])
    assert case["ratio_lanes"] == case["ratios"]["lanes"][case["faster_trainer"]]["median"]


def test_table_names_every_side(
    script: Callable[[str], ModuleType], study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [a for a in FEW if a != "--json"]
    assert script("lanes_cpu").main([*arguments, "--study", str(study_file)]) == 0
    text = capsys.readouterr().out
    for name in ("Trainer (fp32 weights)", "bakeoff, solo", "bakeoff, 2 lanes"):
        assert name in text


def test_mismatched_examples_give_no_ratio(
    script: Callable[[str], ModuleType],
    study_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two sides that see different examples get no ratio."""
    sides = script("cpu_sides")
    right = sides.Theirs.run
    monkeypatch.setattr(
        sides.Theirs, "run", lambda self, seed, *a, **k: right(self, seed + 7, *a, **k)
    )
    code = script("lanes_cpu").main([*FEW, "--quick", "--study", str(study_file)])
    said = capsys.readouterr()
    assert code == 1
    assert "losses-differ" in said.err
    assert "ratio" not in said.out


def test_sides_sample_same_examples(
    script: Callable[[str], ModuleType],
) -> None:
    """Both sides sample the same examples in the same steps."""
    from bakeoff.engine.batch_order import step_indices
    from bakeoff.tasks._base import Example

    examples = [Example((i,), (0,)) for i in range(10)]
    picked = script("cpu_sides").pick(examples, 4, 3, 5)
    order = step_indices(10, 4, 3)
    assert [[e.tokens[0] for e in step] for step in picked] == [list(next(order)) for _ in picked]


def test_catalog_methods_all_benchmarked(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Every method of the catalog is a row."""
    catalog = script("catalog")
    out = tmp_path / "rows.jsonl"
    arguments = ["--model", "tiny", "--lanes", "2", "--workers", "2", "--steps", "2"]
    arguments += ["--methods", "lora_qv,bitfit", "--out", str(out)]
    catalog.main(arguments)
    rows = {(r["method"], r["side"]): r for r in map(json.loads, out.read_text().splitlines())}
    assert rows["lora_qv", "lanes"]["lanes"] == 2
    assert rows["lora_qv", "hf"]["tokens_per_second"] > 0
    assert "no bias terms" in rows["bitfit", "lanes"]["error"]
    catalog.main(arguments)  # again: nothing is missing, nothing is added
    assert len(out.read_text().splitlines()) == 4
    head, _, first, second, *_, last = catalog.table(out).splitlines()
    assert head.startswith("| method | lanes |")
    assert first.startswith("| lora | 2 |")
    assert "no bias terms" in second
    assert last.startswith("Median of 1: ")


def test_scale_out_timings(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale-out benchmark times transfer, writing and reading."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "scale.json"
    arguments = ["--quick", "--executors", "inline", "--out", str(out)]
    assert script("scale_out").main(arguments) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {"date", "machine", "load_before", "versions"} <= set(found)
    (carried,) = found["executors"]
    assert carried["segments_per_second"] > 0
    assert carried["driver_cpu_milliseconds"] > 0
    assert [row["items"] for row in found["store"]] == [None, 0, 20]
    assert all(row["rows_per_second"] > 0 for row in found["store"])
    assert found["report"]["trials"] == 60
    wanted = {"plan", "keep_rung", "keep", "finished", "rungs", "read", "summarise", "page"}
    assert wanted <= set(found["report"]["seconds"])
    assert list(tmp_path.iterdir()) == [out], "what was written for timing is removed"
