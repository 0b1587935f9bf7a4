"""The recipes of CONTRIBUTING.md, each written into a copy of bakeoff that then uses it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"\*\*`(src/[\w/.]+)`\*\*\n+```\w+\n(.*?)```", CONTRIBUTING, re.DOTALL))

NO_TORCH = "import sys\nassert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
STUDY = """
from pathlib import Path
import bakeoff
from bakeoff.testing.tiny import rows, save_llama, write_jsonl

base = save_llama(Path("base"))
write_jsonl(Path("rows.jsonl"), rows())
values = {
    "name": "recipe",
    "base": {"model": str(base)},
    "data": {"train": "rows.jsonl"},
    "task": {"kind": "language_model", "max_length": 32},
    "methods": {"control": "lora", "contenders": ["ia3"]},
    "forgetting": {"text": "off"},
    "budget": {"steps": 4, "batch_size": 8, "settings": 1, "seeds": 2, "validations": 1},
    "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
}
report = bakeoff.run(bakeoff.parse_spec(values), Path(), Path("out"))
assert report["study"]["task"] == "language_model"
assert [m["status"] for m in report["methods"]] == ["done", "done"], report["failures"]
assert report["methods"][0]["score"]["estimate"] > 0
"""
USES = {
    "src/bakeoff/methods/catalog/my_rslora.toml": """
from pathlib import Path
from bakeoff.methods import registry

assert "my_rslora" in registry.names()
entry = registry.load("my_rslora", Path())
assert entry.config["use_rslora"] is True
""" + NO_TORCH,
    "src/bakeoff/methods/hooks/weight_penalty.py": """
from dataclasses import replace
from pathlib import Path
import torch
from bakeoff.methods import registry
from bakeoff.methods.hook import build_hook

entry = replace(registry.load("lora", Path()), hook="weight_penalty")
hook = build_hook(entry, dict(entry.config))
model = torch.nn.Linear(2, 2, bias=False)
assert torch.allclose(hook.penalty(model), 1e-4 * model.weight.square().sum())
""",
    "src/bakeoff/tasks/language_model.py": STUDY,
    "src/bakeoff/metrics/builtin/starts_with.py": """
from pathlib import Path
import bakeoff
from bakeoff.metrics import load
from bakeoff.study.setup.open_study import resolve_metric

spec = bakeoff.parse_spec({
    "name": "recipe", "base": {"model": "m"}, "data": {"train": "rows.jsonl"},
    "task": {"kind": "sft", "metric": "starts_with", "metric_options": {"ignore_case": True}},
    "methods": {"control": "lora", "contenders": ["ia3"]}, "budget": {"steps": 2},
    "engine": {"executor": "inline"},
})
chosen = resolve_metric(spec, Path())
assert (chosen.name, chosen.options["ignore_case"]) == ("starts_with", True)
metric = load._build_metric(load.MetricSource.parse("starts_with", Path()), None, {})
assert [metric.function(a, "Yes") for a in ("Yes, I do", "No")] == [1.0, 0.0]
""" + NO_TORCH,
    "src/bakeoff/study/executors/timed.py": """
from bakeoff.core.plugins import load_plugin
from bakeoff.study.executors import Options

executor = load_plugin("study.executors", "timed", "executor").EXECUTOR(1, Options())
outcomes = list(executor.map("builtins:len", [{"a": 1}, 7]))
assert [o.value for o in outcomes] == [1, None]
assert "TypeError" in outcomes[1].error
""" + NO_TORCH,
    "src/bakeoff/report/sections/verdict_list.py": """
from bakeoff.report import render
from helpers.report_fixture import report

page = render(report())
assert "Verdicts as a list" in page
""",
    "src/bakeoff/integrations/trackers/jsonl.py": """
import json
import sys
from pathlib import Path
from typer.testing import CliRunner
from bakeoff.cli import app

done = CliRunner().invoke(app, ["export-curves", "study", "--to", "jsonl", "--out", "curves"])
assert done.exit_code == 0, (done.output, done.exception)
runs = [json.loads(line) for line in Path("curves/runs.jsonl").read_text().splitlines()]
assert any(run["points"] for run in runs)
assert "cat curves/runs.jsonl" in done.output
""" + NO_TORCH,
    "src/bakeoff/engine/peft_patches/lora_arguments.py": """
import peft
import torch
from bakeoff.engine.peft_patches import install_patches

base = torch.nn.Sequential(torch.nn.Linear(4, 4))
model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"]))
before = model(torch.ones(1, 4))
layer = model.base_model.model[0]
assert layer in install_patches(model)
assert type(layer)._check_forward_args.__module__ == "bakeoff.engine.peft_patches.lora_arguments"
assert torch.equal(model(torch.ones(1, 4)), before)
""",
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy bakeoff's sources into a folder."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "bakeoff", folder / "src" / "bakeoff", ignore=ignored)
    return folder


def test_recipe_for_every_kind() -> None:
    assert RECIPES.keys() == USES.keys()


@pytest.mark.parametrize("path", USES, ids=lambda path: Path(path).parent.name)
def test_recipe_works(copy: Path, tmp_path: Path, path: str) -> None:
    """Write the recipe as a new file into the copy and use it there in a new process."""
    file = copy / path
    assert not (ROOT / path).exists(), "a recipe is a new file"
    shutil.copytree(ROOT / "tests" / "data" / "legacy_study" / "finished", tmp_path / "study")
    file.write_text(RECIPES[path], encoding="utf-8")
    paths = os.pathsep.join([str(copy / "src"), str(ROOT / "tests")])
    check = "import bakeoff, sys\nassert bakeoff.__file__.startswith(sys.argv[1])\n" + USES[path]
    try:
        done = subprocess.run(
            [sys.executable, "-c", check, str(copy)], cwd=tmp_path, text=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    finally:
        file.unlink()
    assert done.returncode == 0, done.stderr[-3000:]
