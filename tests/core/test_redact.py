"""What leaves the process as text shows no secret and does nothing: log, terminal, page, JSON."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.report_fixture import report as report_fixture
from helpers.untrusted import ALL, MARKUP, PAGES, SECRET_PARTS, SECRETS, TERMINALS
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from bakeoff import api, cli
from bakeoff.cli.display import output
from bakeoff.cli.display.progress import LiveProgress
from bakeoff.core.errors import PreflightError
from bakeoff.core.names import invalid_name_reason
from bakeoff.core.redact import (
    escape_control_chars,
    redact,
    redact_value,
    sanitize,
    strip_control_chars,
)
from bakeoff.report import render
from bakeoff.study.config import parse_spec
from bakeoff.study.monitoring.progress import LoggingProgress, Progress
from bakeoff.testing.tiny import rows, write_jsonl

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("what", SECRETS)
def test_secrets_are_known_by_their_form(what: str) -> None:
    text = f"before {SECRETS[what]} after"
    assert SECRET_PARTS[what] not in redact(text)
    assert redact(text).startswith("before ")
    assert SECRET_PARTS[what] not in json.dumps(redact_value({"a": [{SECRETS[what]: (text,)}]}))


def test_environment_secrets_known_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of this process are recognised by their value."""
    monkeypatch.setenv("HF_TOKEN", "plain-looking words")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI/K7")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/.cache/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-as-ever")
    said = redact("got plain-looking words, wJalr/XUtnFEMI/K7, /home/me/.cache/token")
    assert said == "got [redacted], [redacted], /home/me/.cache/token"
    assert redact("false-as-ever") == "false-as-ever"


@pytest.mark.parametrize(
    "harmless",
    [
        "HuggingFaceTB/SmolLM2-135M", "max_new_tokens = 64", "eos_token: </s>", "a@b.example",
        "https://host.example/a@b", "asset:minilm", "the secret garden", "hf_hub", "basic words",
        "bakeoff run study.toml --out runs/mine", "risk-averse and task-dependent-adaptation",
    ],
)  # fmt: skip
def test_ordinary_text_unchanged(harmless: str) -> None:
    """Text without secrets stays as it is."""
    assert redact(harmless) == harmless


def test_logs_and_messages_hold_no_secret(tmp_path: Path) -> None:
    """Logs and messages hold no secret."""
    log = LoggingProgress(tmp_path / "log.jsonl", Progress())
    for text in SECRETS.values():
        log.say(text)
        log.advance(text)
        log.phase(text, 1, 0)
    written = (tmp_path / "log.jsonl").read_text()
    assert not [p for p in SECRET_PARTS.values() if p in written]
    assert all(json.loads(line) for line in written.splitlines())


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(draw: Any, monkeypatch: pytest.MonkeyPatch, colour: bool = True) -> str:
    """Return what a console as ours writes to a terminal."""
    file = _Terminal()
    console = output.SafeConsole(
        file=file, force_terminal=colour, highlight=False, emoji=False, width=200
    )
    for name in ("out", "err"):
        monkeypatch.setattr(output, name, console)
    draw(console)
    return file.getvalue()


OWN_CODES = re.compile(r"\x1b\[(?:\?25[lh]|[0-9;]*[mKAGJ])")
"""What rich writes itself: colours, a cursor that hides, moves a line up and is erased."""


def test_hostile_text_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(console: output.SafeConsole) -> None:
        for text in ALL:
            output.show_error(PreflightError("a-code", text, text))
            output.show_table((text, f"<{text}"), [(text, text)], title=text)
            with LiveProgress(console) as live:
                live.phase(text, 2, 0)
                live.advance(text)
                live.say(text)

    written = shown(draw, monkeypatch)
    left = OWN_CODES.sub("", written).replace("\r", "")  # rich begins lines anew
    assert not ACTING.findall(left)
    for text in MARKUP:  # brackets are text, not markup
        assert text in left
    plain = shown(draw, monkeypatch, colour=False)
    assert not ACTING.findall(plain)


def test_colours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    written = shown(lambda c: c.print("[red]x[/]", Text("y", style="bold")), monkeypatch)
    assert written == "\x1b[31mx\x1b[0m \x1b[1my\x1b[0m\n"


def test_json_redaction_keeps_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Redacted JSON is the same value and safe to display."""
    values = {text: [text] for text in (*ALL, "\ud800 half", "naïve €")}
    output.show_json(values)
    printed = capsys.readouterr().out
    assert not ACTING.findall(printed.replace("\n", ""))
    assert json.loads(printed) == values
    assert "naïve €" in printed
    assert SECRETS["hub token"] not in escape_control_chars(
        json.dumps(redact_value(list(SECRETS.values())))
    )


@given(st.text())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_any_text_is_printable(text: str) -> None:
    assert not ACTING.search(sanitize(text))
    assert strip_control_chars(strip_control_chars(text)) == strip_control_chars(text)
    sanitize(text).encode()


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))


def _poisoned(value: Any, poison: str, keep: tuple[str, ...] = ()) -> Any:
    """Append hostile text to every text of a report, but to words that the report tells apart."""
    if isinstance(value, dict):
        return {k: v if k in keep else _poisoned(v, poison, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [_poisoned(v, poison, keep) for v in value]
    return value + poison if isinstance(value, str) else value


WORDS = (
    "schema", "method", "control", "status", "verdict", "better", "metric", "unit", "kind", "cost",
    "axis", "front", "prefer", "phase", "select_on", "decision", "memory_kind", "outcome", "what",
    "pareto", "role", "tone", "match", "left_out", "code", "word", "reason_code",
)  # fmt: skip
"""Keys whose values are words of the schema, or names that others refer to."""


@pytest.mark.parametrize("poison", [*PAGES, *TERMINALS], ids=ascii)
def test_hostile_text_adds_no_elements(poison: str) -> None:
    """A page of hostile text has the elements of a harmless one."""
    page = render(_poisoned(report_fixture(), poison, WORDS))
    harmless = render(_poisoned(report_fixture(), "x" * len(poison), WORDS))
    found, expected = _Elements(), _Elements()
    found.feed(page)
    expected.feed(harmless)
    # a long text is folded by its length, which is the same; nothing else may differ
    assert found.tags == expected.tags
    assert not ACTING.findall(page.replace("\t", ""))


def test_study_of_hostile_rows(
    study_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A complete study of hostile rows shows them as text.

    Rows with scripts, escapes and tokens are trained on; report and terminal show them dead.
    """
    labels = (
        "<script>window.__pwned = 1</script>",
        "\x1b]0;title\x07[/bold]",
        "=cmd|' /C calc'!A0",
    )
    poisoned = [
        {"text": f"{r['text']} {ALL[i % len(ALL)]}", "label": labels[i % 3]}
        for i, r in enumerate(rows())
    ]
    study_values["data"]["train"] = str(write_jsonl(tmp_path / "rows.jsonl", poisoned))
    study_values["budget"] |= {"settings": 1, "seeds": 1, "steps": 2}
    secret = SECRETS["hub token"]
    monkeypatch.setattr(sys, "argv", ["bakeoff", "run", "--x", secret, SECRETS["userinfo"]])
    out = tmp_path / "out"
    report = api.run(parse_spec(study_values), tmp_path, out)
    assert (
        report["provenance"]["command"]
        == "bakeoff run --x [redacted] https://[redacted]@host.example/path"
    )
    page = (out / "report.html").read_text()
    assert "<script>window.__pwned" not in page
    for name in ("report.html", "report.json", "log.jsonl"):
        written = (out / name).read_text()
        assert not ACTING.findall(written), name
        assert secret not in written
        assert "hunter2" not in written
    for verb in ("report", "status"):
        monkeypatch.setattr(sys, "argv", ["bakeoff", verb, str(out)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
    said = capsys.readouterr()
    assert not ACTING.findall(said.out + said.err)


def test_internal_error_hides_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An internal error shows no secret."""

    def fail(*_: object) -> None:
        raise RuntimeError(f"\x1b]0;x\x07 {SECRETS['userinfo']}")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert "RuntimeError" in said
    assert "hunter2" not in said
    assert not ACTING.findall(said)


def test_disk_error_is_not_internal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk error is not reported as an internal error."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "runs/x/study.db")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 6
    assert "runs/x/study.db: No space left on device" in " ".join(capsys.readouterr().err.split())


def test_report_names_are_plain() -> None:
    """The names shown in a report are plain text."""
    assert [n for n in ALL if invalid_name_reason(n) is None] == []


def test_stored_failures_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is stored about a failure holds a secret.

    Fault 66: neither the database nor a trial's folder, whose texts reports are made of.
    """
    from bakeoff.core.trial import Segment
    from bakeoff.study import scheduler
    from bakeoff.study.executors import Outcome
    from bakeoff.testing.trials import make_trial
    from bakeoff.training import segment

    def fail(*_: object) -> None:
        warnings.warn(f"trying {SECRETS['query']}", stacklevel=1)
        raise RuntimeError(f"401 for {SECRETS['userinfo']}")

    monkeypatch.setattr(segment, "_train_and_score", fail)
    own = Segment((make_trial("lora", "sft"),), 0, 10, str(tmp_path), "base")
    (result,) = segment.run_segment(own).results
    assert (result.reason or "").startswith("RuntimeError: 401 for https://[redacted]@")
    assert len(result.warnings) == 1
    last_words = Outcome(0, None, f"died of {SECRETS['key']}", SECRETS["bearer"])
    (died,) = (
        scheduler._segment_results(
            own, last_words, Counter({own.trials[0].id: scheduler.MAX_CRASHES})
        )
        or ()
    )
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert "401" in written
    for text in (written, json.dumps(result.to_json()), json.dumps(died.to_json())):
        assert not [part for part in SECRET_PARTS.values() if part in text]
