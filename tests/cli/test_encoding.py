"""Output survives every encoding, a closed stream and a reader that leaves."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.table import Table

from bakeoff import cli
from bakeoff.cli.display import output, token_view
from bakeoff.cli.display.encoding import make_total, replace_missing
from bakeoff.cli.display.output import SafeConsole, show_document, show_json
from bakeoff.cli.display.progress import LiveProgress
from bakeoff.study.monitoring.progress import LoggingProgress
from bakeoff.testing.tiny import rows, write_jsonl

ENCODINGS = ("cp1252", "ascii", "latin-1", "cp437", "utf-8")
SIGNS = "│ ⏎ ⇥ × – — − … → ← ≥ ± ✓ • ’ “”"
TEXT = f"{SIGNS} Grüße 中文 \N{SLIGHTLY SMILING FACE} [red]x[/] \udc80 \x1b[31m"


class Stream(io.TextIOWrapper):
    """A stream of bytes in memory, strict about what its encoding lacks."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def text(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def replaced(monkeypatch: pytest.MonkeyPatch, encoding: str, name: str = "stdout") -> Stream:
    """Replace a stream of this process; in the test itself, because pytest does too."""
    stream = Stream(encoding)
    monkeypatch.setattr(sys, name, stream)
    return stream


def test_substitutes() -> None:
    assert replace_missing("│a⏎│ ×2 … → é", "ascii") == "|a\\n| x2 ... -> \\xe9"
    assert replace_missing("│ é", "cp1252") == "| é"
    assert replace_missing("中\N{SLIGHTLY SMILING FACE}", "latin-1") == "\\u4e2d\\U0001f642"
    assert replace_missing("a\udc80", "utf-8") == "a\\udc80"
    assert replace_missing(SIGNS, "utf-8") == SIGNS
    assert "\\" not in replace_missing(SIGNS.replace("⏎", "").replace("⇥", ""), "ascii")


def test_consoles(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, boxes, tokens and progress lines, whatever their texts."""
    stdout = replaced(monkeypatch, encoding)
    console = SafeConsole(file=stdout, highlight=False, emoji=False, width=60)
    table = Table("a", "b", title=TEXT[:20])
    table.add_row("中", "│")
    console.print(table)
    console.print(output.escape_text(TEXT))
    with LiveProgress(console) as live:
        live.phase("Search – ✓", 2, 0)
        live.say(TEXT)
        live.advance("LoRA 中")
    pieces = [{"text": "a\n中│", "tokens": 2, "supervised": True}]
    row = {"where": "line 1", "tokens": 2, "supervised": 2, "label": None, "pieces": pieces}
    token_view.show_rows([row])
    assert "supervised" in stdout.text()
    if encoding != "utf-8":
        assert "\\u4e2d" in stdout.text()


def test_json_stays_json(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = replaced(monkeypatch, encoding)
    value = {"text": TEXT.replace("\udc80", "")}
    show_json(value)
    assert json.loads(stdout.text()) == value


def test_document_says_what_is_lost(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report or a table on stdout whose characters do not fit is announced on stderr."""
    stdout, stderr = (replaced(monkeypatch, encoding, name) for name in ("stdout", "stderr"))
    show_document("a,中\n")
    whole = encoding == "utf-8"
    assert stdout.text() == ("a,中\n" if whole else "a,\\u4e2d\n")
    assert ("PYTHONIOENCODING" in stderr.text()) is not whole


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_plan_shows_rows(
    encoding: str, study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with rows of emoji and Chinese, in a code page that has neither."""
    texts = [{**r, "text": f"{r['text']} \N{SLIGHTLY SMILING FACE} 中文\n│"} for r in rows()]
    write_jsonl(tmp_path / "rows.jsonl", texts)
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(study_values), encoding="utf-8")
    streams = {n: replaced(monkeypatch, encoding, n) for n in ("stdout", "stderr")}
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    for more in (["--show", "2"], ["--show", "1", "--json"]):
        monkeypatch.setattr(sys, "argv", ["bakeoff", "plan", str(file), "--no-time", *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None), streams["stderr"].text()
    shown, _, as_json = streams["stdout"].text().partition("\n{")
    assert "supervised" in shown
    assert json.loads("{" + as_json)["rows"][0]["pieces"]


def test_internal_error_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = replaced(monkeypatch, "ascii", "stderr")
    make_total(stream)
    try:
        raise ValueError(TEXT)
    except ValueError:
        output.show_internal_error()
        print(TEXT, file=sys.stderr)
    assert "ValueError" in stream.text()
    assert "This is a bug" in stream.text()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "bakeoff", *words]


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}], ids=str)
def test_process_in_ascii(variables: dict[str, str]) -> None:
    """The streams of a process of its own: help, a table and JSON."""
    env = {**os.environ, **variables, "TERM": "dumb"}
    ran = subprocess.run(command("run", "--help"), env=env, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"--column" in ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    ("redirected", "code"), [(">&-", 0), ("2>&-", 0), (">/dev/full", 6), ("2>/dev/full", 0)]
)
def test_streams_that_take_nothing(redirected: str, code: int) -> None:
    ran = subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", *command("methods", "--json")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert ran.returncode == code, ran.stderr
    assert b"Traceback" not in ran.stderr


def test_exit_code_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that cannot be printed still has its exit code."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EPIPE, "the reader has left")

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bakeoff", "methods", "nope"])
    monkeypatch.setattr(replaced(monkeypatch, "utf-8", "stderr"), "write", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_study_goes_on_without_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`bakeoff run ... 2>&1 | head`: its progress is logged, and no exit ends the study."""

    def refuse(*_: object) -> int:
        raise BrokenPipeError

    stream = Stream("utf-8")
    monkeypatch.setattr(stream, "write", refuse)
    with LiveProgress(SafeConsole(file=stream)) as live:
        heard = LoggingProgress(tmp_path / "log.jsonl", live)
        heard.phase("Search", 1, 0)
        heard.say("still here")
    assert "still here" in (tmp_path / "log.jsonl").read_text(encoding="utf-8")


def test_reader_that_leaves() -> None:
    """`bakeoff methods --json | head -1`: no traceback, no error of a disk."""
    with subprocess.Popen(
        command("methods", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert told == b""


def test_prints_of_a_worker(tmp_path: Path) -> None:
    """What a user's metric prints does not end a worker, whatever the parent's streams are."""
    log = tmp_path / "log"
    log.touch()
    code = (
        "import sys; from bakeoff.training.worker import redirect_output; "
        f"redirect_output({str(log)!r}); print('✓ 中\\udc80'); print('✓', file=sys.stderr)"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    ran = subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&-', "sh", sys.executable, "-c", code], env=env, check=False
    )
    assert ran.returncode == 0
    assert log.read_text(encoding="utf-8") == "✓ 中\\udc80\n✓\n"
