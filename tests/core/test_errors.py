"""Error texts, and unknown names of plug-ins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bakeoff.core.errors import UsageError, first_line
from bakeoff.core.plugins import load_plugin
from bakeoff.methods import registry
from bakeoff.methods.hook import build_hook


@pytest.mark.parametrize(
    ("error", "with_type", "line"),
    [
        (ValueError("one\ntwo"), True, "ValueError: one"),
        (ValueError("  one  thing\ntwo"), False, "one thing"),
        (NotImplementedError(), False, "NotImplementedError"),
        (ValueError("x" * 50), False, "x" * 27 + "..."),
    ],
)
def test_first_line(error: Exception, with_type: bool, line: str) -> None:
    assert first_line(error, 30, with_type) == line


@pytest.mark.parametrize(
    ("package", "kind", "name", "near"),
    [
        ("methods.hooks", "hook", "corde", "corda"),
        ("metrics.builtin", "metric", "acuracy", "accuracy"),
        ("study.executors", "executor", "proces", "process"),
        ("tasks", "task", "clasify", "classify"),
    ],
)
def test_misspelt_plugin(package: str, kind: str, name: str, near: str) -> None:
    with pytest.raises(UsageError) as error:
        load_plugin(package, name, kind)
    assert error.value.code == f"unknown-{kind}"
    assert error.value.cause == f"No {kind} named '{name}'."
    assert f"did you mean '{near}'?" in error.value.try_


def test_misspelt_hook_of_a_method() -> None:
    entry = dataclasses.replace(registry.load("corda", Path()), hook="corde")
    with pytest.raises(UsageError) as error:
        build_hook(entry, {})
    assert error.value.code == "unknown-hook"
    assert error.value.cause == "No hook named 'corde'."
    assert "did you mean 'corda'?" in error.value.try_
