"""The structure holds by machine: layers, halves, sizes; and the linter would notice."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "bakeoff"
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 600, 60, 7

VIOLATIONS = {
    "a stray utils.py": ("utils.py", ""),
    "core imports data": ("core/errors.py", "import bakeoff.data.rows"),
    "core imports the study": ("core/results.py", "import bakeoff.study.config"),
    "data imports analysis": ("data/rows.py", "import bakeoff.analysis.compare"),
    "data imports the study": ("data/splits.py", "import bakeoff.study.config"),
    "engine imports data": ("engine/loop.py", "import bakeoff.data.rows"),
    "engine imports a method": ("engine/loop.py", "import bakeoff.methods.hook"),
    "engine imports a task": ("engine/batch_order.py", "from bakeoff.tasks import classify"),
    "analysis imports the study": (
        "analysis/compare.py", "from bakeoff.study.storage.database import Reader"),
    "analysis imports a task": ("analysis/compare.py", "import bakeoff.tasks.sft"),
    "analysis imports torch": ("analysis/pareto.py", "import torch"),
    "methods import the training half": ("methods/registry.py", "import bakeoff.training.setup"),
    "a task imports the segment": ("tasks/sft.py", "import bakeoff.training.segment"),
    "metrics import a task": ("metrics/load.py", "import bakeoff.tasks.sft"),
    "the study imports the training half": ("study/run.py", "import bakeoff.training.segment"),
    "the study imports the report": ("study/run.py", "import bakeoff.report.write"),
    "the training half imports the study": (
        "training/segment.py", "import bakeoff.study.planning.trials"),
    "the training half needs pydantic": ("training/setup.py", "import pydantic"),
    "the report imports an integration": (
        "report/page.py", "import bakeoff.integrations.notebook"),
    "the report's page reads a study": (
        "report/page.py", "import bakeoff.study.storage.database"),
    "an integration imports the api": ("integrations/notebook.py", "import bakeoff.api"),
    "the api imports the command line": ("api.py", "import bakeoff.cli.run"),
    "the command line imports the test kit": ("cli/status.py", "import bakeoff.testing.tiny"),
    "planning imports the replicates": (
        "study/planning/racing.py", "import bakeoff.study.replicates"),
    "storage imports an executor": (
        "study/storage/lock.py", "import bakeoff.study.executors.inline"),
    "the configuration imports planning": (
        "study/config/budget.py", "import bakeoff.study.planning.trials"),
    "the configuration imports peft": ("study/config/base.py", "import peft"),
    "an executor imports torch": ("study/executors/inline.py", "import torch"),
    "another file than its executor imports ray": ("study/setup/open_study.py", "import ray"),
    "a task imports another": ("tasks/sft.py", "from bakeoff.tasks.classify import Classify"),
    "a metric imports another": (
        "metrics/builtin/accuracy.py", "import bakeoff.metrics.builtin.json_match"),
    "an executor imports another": (
        "study/executors/process.py", "import bakeoff.study.executors.inline"),
    "a section imports another": (
        "report/sections/table.py", "import bakeoff.report.sections.forest"),
    "a hook imports another": ("methods/hooks/full.py", "import bakeoff.methods.hooks.head"),
    "a tracker imports another": (
        "integrations/trackers/mlflow.py", "import bakeoff.integrations.trackers.trackio"),
    "a patch imports another": (
        "engine/peft_patches/oft.py", "import bakeoff.engine.peft_patches.dora"),
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


def test_import_contracts_hold(copy: Path) -> None:
    """The import contracts hold."""
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("what", VIOLATIONS)
def test_planted_violation_is_caught(copy: Path, what: str) -> None:
    """A planted violation of a contract is caught."""
    name, line = VIOLATIONS[what]
    path = copy / "src" / "bakeoff" / name
    assert path.exists() or not line, "a violation is planted in a file that exists"
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
def test_study_process_loads_no_torch(code: str) -> None:
    """The study process loads no torch."""
    check = f"{code}\nimport sys\nassert not {{'torch', 'transformers', 'peft'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_loads_neither_torch_nor_scipy() -> None:
    check = "import bakeoff.cli, sys; assert not {'torch', 'scipy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_training_needs_no_study_packages() -> None:
    """The training process imports no package of the study process."""
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


def test_training_loop_names_no_method() -> None:
    """The training loop names no method."""
    names = {p.stem for p in (SOURCE / "methods" / "catalog").glob("*.toml")}
    for path in (SOURCE / "engine").rglob("*.py"):
        if path.parent.name == "peft_patches":
            continue  # one file for each PEFT layer that needs it
        words = set(path.read_text(encoding="utf-8").lower().replace('"', " ").split())
        assert not words & (names - {"full", "head"}), path
