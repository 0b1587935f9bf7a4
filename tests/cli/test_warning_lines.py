"""Warnings in a terminal: ranked, merged, cut to one screen, each printed once."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bakeoff.cli.display.output import SafeConsole
from bakeoff.cli.display.progress import LiveProgress
from bakeoff.cli.display.warning_lines import MAX_LINES, MAX_LINES_EACH, show_warnings
from bakeoff.core.warning_codes import (
    GROUPS,
    LIBRARY,
    Caveat,
    code_of,
    group_of,
    list_names,
    merge_caveats,
    sort_warnings,
)
from bakeoff.data.issues import DataIssue, Place, list_warnings
from bakeoff.study.monitoring.progress import LOG, LoggingProgress

MESSY = [
    "Duplicates in 8 rows of train. [duplicate-rows]",
    "LoRA: Position ids are not supported. [library-warning]",
    "The best learning rate of LoRA, 0.001, is at the edge of those tried. [rate-at-edge]",
    "A text that train has too in 2 rows of test. [test-in-train]",
    "LoRA has one seed: its seed noise is unknown and in no interval. [one-seed]",
    "LoRA and mine gave identical results. [identical-results]",
]


def place(split: str, row: int) -> Place:
    return Place(f"{split}.jsonl", "line", row + 1)


def make_console(width: int = 80, terminal: bool = True) -> SafeConsole:
    return SafeConsole(
        file=io.StringIO(), width=width, force_terminal=terminal, no_color=True, highlight=False
    )


def printed(console: SafeConsole) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_order_of_importance() -> None:
    """What changes the meaning of the verdict is first, what a library says last."""
    assert [code_of(w) for w in sort_warnings([*MESSY, MESSY[0], "without a code"])] == [
        "identical-results",
        "test-in-train",
        "one-seed",
        "rate-at-edge",
        "duplicate-rows",
        LIBRARY,
        None,
    ]


def test_every_listed_code_has_one_group() -> None:
    codes = [code for codes in GROUPS.values() for code in codes]
    assert len(codes) == len(set(codes))
    assert group_of("x [some-new-issue]") == "data"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["A"], "A"),
        (["A", "B"], "A and B"),
        (["A", "B", "C"], "A, B and C"),
        (list("ABCDEFGHI"), "A, B, C, D, E, F and 3 more"),
    ],
)
def test_list_of_names(names: list[str], text: str) -> None:
    assert list_names(names) == text


def test_methods_share_a_warning() -> None:
    """The same caveat of several methods is one warning; braces in texts are harmless."""
    caveats = [Caveat("one-seed", f"{m} has one seed.", "{} have one seed.", m) for m in "ABA"]
    caveats += [Caveat(LIBRARY, f"{m}: a {{x}}", "{}: a {{x}}", m) for m in "AB"]
    caveats += [Caveat("rate-at-edge", "C is at the edge.", "{} are at the edge.", "C")]
    assert merge_caveats(caveats) == [
        "A and B have one seed. [one-seed]",
        "A and B: a {x} [library-warning]",
        "C is at the edge. [rate-at-edge]",
    ]


def test_splits_share_a_warning() -> None:
    """The same issue in two splits is one warning with one hint."""
    issues = [
        DataIssue.at("mixed", "A number", "use one form.", split, rows, 40)
        for split, rows in (("train", [2, 4]), ("test", [0]))
    ]
    other = DataIssue.at("mixed", "A date", "use one form.", "test", [1], 40)
    assert list_warnings([*issues, other], place) == [
        "A number in 2 of 40 rows of train: lines 3 and 5 of train.jsonl; in 1 of 40 rows of test: "
        "line 1 of test.jsonl. Use one form. [mixed]",
        "A date in 1 of 40 rows of test: line 2 of test.jsonl. Use one form. [mixed]",
    ]


def test_one_screen_at_most() -> None:
    """Many long warnings take one screen; the others are counted."""
    long = [f"{i} {'word ' * 100}[issue-{i}]" for i in range(30)]
    console = make_console()
    shown = show_warnings(console, [*long, *MESSY], "in the report.")
    lines = printed(console)
    assert len(lines) <= MAX_LINES + 1
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("warning: LoRA and mine gave identical results")
    assert lines[-1] == f"{36 - len(shown)} more warnings: in the report."
    cut = [line for line in lines if line.endswith("… [issue-0]")]
    assert len(cut) == 1
    assert sum("word" in line for line in lines) == MAX_LINES_EACH * (len(shown) - 4)


def test_verbose_prints_all_uncut() -> None:
    long = [f"{i} {'word ' * 100}end{i} [issue-{i}]" for i in range(30)]
    console = make_console(terminal=False)
    assert len(show_warnings(console, [*long, *MESSY], "", verbose=True)) == 36
    lines = printed(console)
    assert len(lines) == 36, "one line each where no terminal wraps them"
    assert sum("end" in line for line in lines) == 30


def test_library_warnings_only_with_verbose() -> None:
    console = make_console()
    show_warnings(console, MESSY, "in the report.")
    lines = printed(console)
    assert not any("Position ids" in line for line in lines)
    assert lines[-1] == "1 more warning: in the report."


def test_printed_once(tmp_path: Path) -> None:
    """A run prints each warning once, together, after its notes and before its first phase."""
    console = make_console(terminal=False)
    with LiveProgress(console, tmp_path) as live:
        log = LoggingProgress(tmp_path / LOG, live)
        log.warn(MESSY[:1])
        log.say("max_length 64: covers all rows")
        log.warn(MESSY[3:4])
        log.phase("Search", 1, 0)
    show_warnings(console, MESSY, "in the report.", shown=live.warned)
    text = "\n".join(printed(console))
    places = [text.index(part) for part in ("max_length", "test-in-train", "Duplicates", "Search")]
    assert places == sorted(places)
    assert all(text.count(w.partition("[")[0]) == 1 for w in MESSY if LIBRARY not in w)
    assert "Printed at the start: test-in-train." in text
    assert (tmp_path / LOG).read_text().count("warning: ") == 2


def test_printed_before_an_error(tmp_path: Path) -> None:
    """Collected warnings are not lost when the study is refused."""
    console = make_console(terminal=False)
    live = LiveProgress(console)
    live.__enter__()
    live.warn(MESSY[:1])
    live.__exit__(RuntimeError, RuntimeError(), None)
    assert "Duplicates" in printed(console)[0]


def test_listener_without_warn(tmp_path: Path) -> None:
    """A user's listener that only has ``say`` gets each warning as a message."""
    heard: list[str] = []

    class Listener:
        def say(self, text: str) -> None:
            heard.append(text)

    LoggingProgress(tmp_path / LOG, Listener()).warn(MESSY[:2])  # type: ignore[arg-type]
    assert heard == [f"warning: {w}" for w in MESSY[:2]]
