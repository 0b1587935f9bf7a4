"""What is written holds: every verb is documented, every file named is there, examples are run."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
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
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_help_and_docs(name: str) -> None:
    """Every command has help and is on the page of commands."""
    done = bakeoff(name, "--help", cwd=ROOT)
    assert done.returncode == 0
    assert len(done.stdout) > 100
    assert f"bakeoff {name}" in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_documented_commands_exist(page: Path) -> None:
    """Every command in a page's shell blocks exists, and so do its options."""
    group = typer.main.get_command(app)
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["bakeoff"]:
                command = group.commands[words[1]]  # type: ignore[attr-defined]
                options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
                assert {w for w in words if w.startswith("--")} <= options | {"--help"}, line
            if words[:1] == ["make"]:
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_link_is_dead(page: Path) -> None:
    """Every linked file exists, and so does the heading that a link names."""
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if not target.startswith(("http:", "https:")):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {link}"


def test_readme_is_short() -> None:
    """The README has at most 150 lines of at most 120 characters."""
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_architecture_tree_exists() -> None:
    """The tree in docs/architecture.md names existing files and every package."""
    source = ROOT / "src" / "bakeoff"
    folders: list[Path] = []
    listed = set()
    for line in blocks(ARCHITECTURE, "text")[0].splitlines()[1:]:
        indent, name = re.match(r"( +)(\S+)", line).groups()  # type: ignore[union-attr]
        folders[len(indent) // 2 - 1 :] = [Path(name)]
        path = source.joinpath(*folders)
        assert path.exists(), path
        listed.add(path)
    packages = {p.parent for p in source.glob("*/__init__.py")}
    assert packages <= listed


def test_architecture_layers() -> None:
    """The table of import layers is that of the linter."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    table = re.findall(r"^\| \d \| (.*?) \|$", ARCHITECTURE, flags=re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in table] == [x.split(" | ") for x in layers]


def test_architecture_paths_exist() -> None:
    """Every path that docs/architecture.md names exists."""
    text = ARCHITECTURE.replace(blocks(ARCHITECTURE, "text")[0], "")
    named = {n for n in re.findall(r"`([\w./-]+)`", text) if "/" in n}
    assert len(named) > 30
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "src" / "bakeoff" / name).exists(), name


def test_contributing_contract_runs(tmp_path: Path) -> None:
    """Run the test that CONTRIBUTING shows over the method that it shows."""
    (method,) = blocks(CONTRIBUTING, "toml")
    (test,) = (b for b in blocks(CONTRIBUTING, "python") if "bakeoff.testing" in b)
    (tmp_path / "mine.toml").write_text(method, encoding="utf-8")
    (tmp_path / "test_mine.py").write_text(test, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "7 passed" in ran.stdout


def test_contributing_method_runs(tmp_path: Path, study_values: dict[str, Any]) -> None:
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
