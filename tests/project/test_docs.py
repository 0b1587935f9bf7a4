"""What is written holds: every verb is documented, every file named is there, examples are run."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from helpers.command import bakeoff

from bakeoff import api
from bakeoff.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("verb", VERBS)
def test_commands_have_help_and_readme(verb: str) -> None:
    """Every command has help and is mentioned in the README."""
    done = bakeoff(verb, "--help", cwd=ROOT)
    assert done.returncode == 0
    assert len(done.stdout) > 100
    assert f"bakeoff {verb}" in README


def test_readme_commands_exist() -> None:
    """Every command in the README exists."""
    for block in blocks(README, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["bakeoff"]:
                assert words[1] in VERBS, line
            if words[:1] == ["make"]:
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), line


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_no_link_is_dead(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_tree_exists() -> None:
    """The tree in the README names existing files."""
    tree = README.split("## The tree")[1]
    for name in re.findall(r"^  ([\w./]+)", blocks(tree, "text")[0], flags=re.MULTILINE):
        assert (ROOT / "src" / "bakeoff" / name).exists(), name


def test_the_contract_in_contributing_runs(tmp_path: Path) -> None:
    """Run the test that CONTRIBUTING shows over the method that it shows."""
    (method,), (test,) = blocks(CONTRIBUTING, "toml"), blocks(CONTRIBUTING, "python")
    (tmp_path / "mine.toml").write_text(method, encoding="utf-8")
    (tmp_path / "test_mine.py").write_text(test, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "7 passed" in ran.stdout


def test_the_method_in_contributing_runs(tmp_path: Path, study_values: dict[str, Any]) -> None:
    """Write the method that CONTRIBUTING shows into one file and run a study with it."""
    from bakeoff.study.config import parse_spec

    (method,) = blocks(CONTRIBUTING, "toml")
    (tmp_path / "rslora.toml").write_text(method, encoding="utf-8")
    study_values["methods"]["contenders"] = ["rslora.toml"]
    del study_values["method"]
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    row = next(m for m in report["methods"] if m["method"] == "rslora")
    assert (row["status"], row["n_settings"], row["n_seeds"]) == ("done", 2, 2)


def faults() -> list[list[str]]:
    """The rows of the page on faults: number, fault, what happens, tests."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+ \|.*) \|$", page, flags=re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def test_reliability_page_tests_exist() -> None:
    """The tests named on the page about faults exist."""
    named = {
        found
        for *_, tests in faults()
        for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    }
    assert len(named) > 100
    for file in sorted({file for file, _ in named}):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {name for where, name in named if where == file} <= there, file


def test_reliability_page_lists_faults_once() -> None:
    """The page about faults lists each of them once."""
    rows = faults()
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 66
    for number, _, happens, tests in rows:
        if tests == "-":
            assert happens.startswith(("does not apply: ", "not covered: ", "not built yet: ")), (
                number
            )
        else:
            assert re.fullmatch(r"(`tests/[\w/]+\.py::\w+`(, |$))+", tests), number
