"""A whole study in which nothing is learnt, with a contender that silently equals the control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.command import bakeoff
from helpers.executors import StandIns

from bakeoff import api


def unlearnt(values: dict[str, Any]) -> dict[str, Any]:
    """Return the study with rates that move nothing, and LoRA again under another name."""
    rates = {"learning_rates": [1e-9]}
    config = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
    twin = {"kind": "peft", "peft": "LoraConfig", "config": config, **rates}  # LoRA once more
    values["methods"] = {"control": "lora", "contenders": ["mine", "ia3"]}
    values["method"] = {"lora": rates, "ia3": {**values["method"].get("ia3", {}), **rates},
                        "mine": twin}  # fmt: skip
    values["task"]["head_learning_rate"] = 1e-9
    values["budget"] |= {"steps": 4, "settings": 1, "seeds": 2, "race": "off", "extend": 0}
    return values


def test_nothing_learnt(
    study_values: dict[str, Any], costs_are_known: StandIns, tmp_path: Path
) -> None:
    """Page, terminal and JSON lead with it; nothing is equivalent, recommended or exported."""
    out = tmp_path / "out"
    report = api.run(api.parse_spec(unlearnt(study_values)), tmp_path, out)
    assert report["learning"] == {"control_learnt": False, "not_learnt": ["lora", "mine", "ia3"]}
    assert report["recommendation"]["method"] is None
    assert [m["verdict"] for m in report["methods"]] == ["control", "none", "none"]
    against = report["methods"][0]["learning"]
    assert against["against"] == "constant"
    assert 0 < against["baseline"] <= 1
    (group,) = report["identical"]
    assert group["methods"] == ["lora", "mine"]
    assert json.loads((out / "report.json").read_text())["recommendation"]["method"] is None
    page = (out / "report.html").read_text()
    assert "Nothing was learnt: LoRA, the control, scores" in page
    shown = bakeoff("report", str(out), cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.strip().startswith("Nothing was learnt: LoRA, the control, scores")
    assert "  equivalent" not in shown.stdout
    assert "no verdict, not learnt" in shown.stdout
    assert "warning: LoRA and mine gave identical results" in shown.stderr
    refused = bakeoff("export", str(out), cwd=tmp_path)
    assert refused.returncode == 2
    assert "The study recommends no method: its control has learnt nothing." in " ".join(
        refused.stderr.split()
    )
