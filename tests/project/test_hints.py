"""Every hint (`Try:`) of the source names commands, keys, extras and pages that exist."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import pytest
import typer
from pydantic import BaseModel

from bakeoff.cli import app
from bakeoff.study.config import StudySpec

ROOT = Path(__file__).parents[2]
COMMANDS: Any = typer.main.get_command(app)
SECTION = re.compile(r"(?<![\w`])\[([a-z_]+)((?:\.[a-z_<>…]+)*)\](?!\w)")
DOTTED = re.compile(r"(?<![\w./])([a-z_]+)\.([a-z_]+)\b(?!\.?[\w(/])")
METHOD_TABLES = ("method", "tuning", "config", "learning_rate", "size")
"""Tables of a method's file, which has its own keys."""
UNDER = re.compile(r"`([a-z_]+)(?: = [^`]*)?`(?: or `([a-z_]+)`)?,? under \[([a-z_]+)\]")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Return the script that collects the hints, imported as `python scripts/...` would run it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("make_errors_page")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def hints(script: ModuleType) -> list[Any]:
    return list(script.collect())


def quoted(hints: list[Any]) -> Iterator[tuple[Any, str]]:
    for hint in hints:
        yield from ((hint, part) for part in re.findall(r"`([^`]+)`", hint.text))


def fields(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the table of a key; None for any other key.

    Raises:
        KeyError: there is no such key.
    """
    found = {(f.alias or n): f.annotation for n, f in model.model_fields.items()}[name]
    kinds = [found, *get_args(found)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def test_page_is_up_to_date(script: ModuleType, hints: list[Any]) -> None:
    """After a change of a hint: `python scripts/make_errors_page.py`, and read the difference."""
    assert script.PAGE.read_text(encoding="utf-8") == script.page(hints)


def test_most_codes_are_found(hints: list[Any]) -> None:
    codes = {h.code for h in hints}
    assert len(codes) > 180
    assert {"no-study", "disk-full", "cannot-merge", "unknown-form", "near-duplicates"} <= codes
    assert all(h.text for h in hints), [h for h in hints if not h.text]


def test_commands_exist(hints: list[Any]) -> None:
    for hint, text in quoted(hints):
        if text.startswith("bakeoff "):
            check_command(shlex.split(text), hint)


def check_command(words: list[str], hint: Any) -> None:
    _, name, *rest = words
    assert name in COMMANDS.commands, hint
    parameters = COMMANDS.commands[name].params
    options = {o: p for p in parameters for o in (*p.opts, *p.secondary_opts)}
    given, positional, named = iter(rest), 0, set()
    for word in given:
        if word.startswith("-"):
            assert word in options, hint
            named.add(word)
            if not options[word].is_flag:
                assert next(given, None) is not None, hint
        else:
            positional += 1
    arguments = [p for p in parameters if isinstance(p, click.Argument) or p.opts[0][:1] != "-"]
    most = 99 if any(a.nargs == -1 for a in arguments) else len(arguments)
    assert sum(a.required for a in arguments) <= positional <= most, hint
    if name == "run":  # it needs either, which its parser does not know
        assert positional or {"--model", "--data"} <= named, hint
    if "--repair" in named:
        assert positional, hint


def test_options_exist(hints: list[Any]) -> None:
    known = {o for c in COMMANDS.commands.values() for p in c.params for o in p.opts}
    for hint, text in quoted(hints):
        if text.startswith("--"):
            assert shlex.split(text)[0] in known, hint


def test_keys_exist(hints: list[Any]) -> None:
    """`[section]`, `section.key` and "`key` under [section]" are in the study file's schema."""
    for hint in hints:
        for text in (hint.cause, hint.text):
            for section, inner in SECTION.findall(text):
                if section in METHOD_TABLES:
                    continue
                table = fields(StudySpec, section)
                for key in filter(None, inner.split(".")):
                    assert table is not None, hint
                    table = fields(table, key)
            for pair in DOTTED.findall(text):
                if (table := tables().get(pair[0])) is not None:
                    assert pair[1] in {f.alias or n for n, f in table.model_fields.items()}, hint
            for first, second, section in UNDER.findall(text):
                table = fields(StudySpec, section)
                assert table is not None, hint
                for key in filter(None, (first, second)):
                    fields(table, key)


def tables() -> dict[str, type[BaseModel]]:
    found = {name: fields(StudySpec, name) for name in StudySpec.model_fields}
    return {name: table for name, table in found.items() if table is not None}


def test_extras_and_pages_exist(hints: list[Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for hint in hints:
        for extra in re.findall(r"bakeoff\[([\w-]+)\]", hint.text):
            assert extra in project["optional-dependencies"], hint
        for page in re.findall(r"docs/[\w-]+\.md", hint.text):
            assert (ROOT / page).is_file(), hint


def test_followed_by_tests_that_exist(script: ModuleType, hints: list[Any]) -> None:
    for code, part, test in script.FOLLOWED:
        assert any(h.code == code and part in h.text for h in hints), (code, part)
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("`bakeoff run` to continue the study.", test_commands_exist),
        ("`bakeoff exprot runs/s`.", test_commands_exist),
        ("`bakeoff export runs/s --form merged`.", test_commands_exist),
        ("`bakeoff doctor --repair`.", test_commands_exist),
        ("another folder: `--output DIR`.", test_options_exist),
        ("`max_len` under [task].", test_keys_exist),
        ("raise task.max_len.", test_keys_exist),
        ("set it in [dataset].", test_keys_exist),
        ("`pip install 'bakeoff[arrow]'`.", test_extras_and_pages_exist),
        ("see docs/no-such-page.md.", test_extras_and_pages_exist),
    ],
)
def test_wrong_hint_is_noticed(script: ModuleType, text: str, test: Any) -> None:
    with pytest.raises((AssertionError, KeyError)):
        test([script.Hint("x.py", 1, "UsageError", "code", "cause", text)])
