"""A whole study on a tiny model: from values to a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bakeoff import api
from bakeoff.spec import parse_spec


def test_a_study_runs_to_its_report(study_values: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = api.run(parse_spec(study_values), tmp_path, out)
    assert report == json.loads((out / "report.json").read_text())
    assert [m["method"] for m in report["methods"]][0] == "lora"
    assert {m["status"] for m in report["methods"]} == {"done"}
