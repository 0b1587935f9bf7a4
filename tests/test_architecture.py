"""The structure holds by machine: layers, halves, sizes; and the linter would notice."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bakeoff"
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 400, 60, 7

VIOLATIONS = {
    "a stray utils.py": ("utils.py", ""),
    "engine names a method": ("engine/loop.py", "import bakeoff.methods.hook"),
    "engine imports a task": ("engine/order.py", "from bakeoff.tasks import classify"),
    "a task imports the segment": ("tasks/sft.py", "import bakeoff.training.segment"),
    "a task imports its sibling": ("tasks/sft.py", "from bakeoff.tasks.classify import Classify"),
    "a metric imports its sibling": ("metrics/accuracy.py", "import bakeoff.metrics.builtin.json_match"),
    "an executor imports its sibling": ("executors/process.py", "import bakeoff.study.executors.inline"),
    "an executor imports the segment": ("executors/process.py", "import bakeoff.training.segment"),
    "an executor imports torch": ("executors/inline.py", "import torch"),
    "another file than its executor imports ray": ("study.py", "import ray"),
    "analysis opens the database": ("analysis/compare.py", "from bakeoff.study.storage.database import Reader"),
    "analysis imports torch": ("analysis/pareto.py", "import torch"),
    "the plan imports the engine": ("plan.py", "import bakeoff.engine.loop"),
    "the plan imports tasks": ("plan.py", "import bakeoff.tasks.sft"),
    "the spec imports peft": ("spec.py", "import peft"),
    "the report opens the database": ("report/page.py", "import bakeoff.study.storage.database"),
    "a section imports its sibling": (
        "report/sections/table.py", "import bakeoff.report.sections.forest"),
    "the view opens the database elsewhere": ("view/app.py", "from bakeoff.study.storage.database import Reader"),
    "the api imports the view": ("api.py", "import bakeoff.report.live.app"),
    "the cli opens the database": ("cli/status.py", "from bakeoff.study.storage.database import Reader"),
    "the segment opens the database": ("segment.py", "import bakeoff.study.storage.database"),
    "the segment sees the plan": ("segment.py", "import bakeoff.study.planning.trials"),
    "the training half needs pydantic": ("assemble.py", "import pydantic"),
    "the store imports the api": ("store/writer.py", "import bakeoff.api"),
    "results import the spec": ("results.py", "import bakeoff.study.config"),
    "errors import data": ("errors.py", "import bakeoff.data.rows"),
}  # fmt: skip


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    path = str(folder / "src")
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": path}
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(SOURCE, folder / "src" / "bakeoff", ignore=shutil.ignore_patterns("vendor"))
    return folder


def test_the_contracts_hold(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("what", VIOLATIONS)
def test_a_planted_violation_is_caught(copy: Path, what: str) -> None:
    name, line = VIOLATIONS[what]
    path = copy / "src" / "bakeoff" / name
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        done = lint(copy)
        assert done.returncode == 1, done.stdout
        assert "BROKEN" in done.stdout or "utils" in done.stdout + done.stderr
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)


@pytest.mark.parametrize(
    "code",
    [
        "import bakeoff.cli",
        "import bakeoff.api",
        "import bakeoff.report.live.server",
        "from bakeoff.cli.run import guess_task; import bakeoff.tasks.classify, bakeoff.tasks.sft",
    ],
)
def test_the_study_half_loads_no_torch(code: str) -> None:
    check = f"{code}\nimport sys\nassert not {{'torch', 'transformers', 'peft'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_loads_neither_torch_nor_scipy() -> None:
    check = "import bakeoff.cli, sys; assert not {'torch', 'scipy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_training_half_needs_no_study_packages() -> None:
    block = "import sys\nfor m in ('pydantic', 'sqlalchemy', 'scipy', 'statsmodels', 'moocore',"
    block += " 'typer', 'rich', 'jinja2', 'tomli_w'):"
    block += "\n    sys.modules[m] = None\n"
    subprocess.run(
        [sys.executable, "-c", block + "import bakeoff.training.preflight.checks"], check=True
    )


def test_files_and_functions_stay_small() -> None:
    large = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_FILE:
            large.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                arguments = len(node.args.args) + len(node.args.kwonlyargs)
                if path.parent.name == "cli" and node.name == "command":
                    arguments = 0  # a verb's options are its interface
                decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
                if "library.custom_op" in decorators or "register_fake" in decorators:
                    arguments = 0  # an operator's arguments are its schema
                if lines > MAX_FUNCTION or arguments > MAX_ARGUMENTS:
                    large.append(f"{path.name}:{node.name}: {lines} lines, {arguments} arguments")
    assert large == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path)
        for path in sorted(SOURCE.rglob("*.py"))
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_the_loop_names_no_method() -> None:
    names = {p.stem for p in (SOURCE / "methods" / "catalog").glob("*.toml")}
    for path in (SOURCE / "engine").glob("*.py"):
        words = set(path.read_text(encoding="utf-8").lower().replace('"', " ").split())
        assert not words & (names - {"full", "head"}), path
