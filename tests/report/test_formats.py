"""`bakeoff report --format`, and the report as an object in a notebook."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.report_fixture import empty_report, hostile_report, report
from helpers.untrusted import ALL
from typer.testing import CliRunner

import bakeoff
from bakeoff import report as pages
from bakeoff.cli import app
from bakeoff.core.errors import UsageError
from bakeoff.core.redact import strip_control_chars
from bakeoff.integrations.notebook import StudyResult

TABLES = {"methods": "method,score\nlora,0.5\n", "curves": "a\n1\n"}


@pytest.fixture(autouse=True)
def fixed_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's report without the study."""
    monkeypatch.setattr("bakeoff.api.report", lambda folder, examples: report())
    monkeypatch.setattr(pages, "tables", lambda r: TABLES)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", "x", *arguments])


@pytest.mark.parametrize(
    ("form", "start"), [("md", "## home-intents"), ("json", "{"), ("html", "<!doctype html>")]
)
def test_format_to_stdout_or_file(form: str, start: str, tmp_path: Path) -> None:
    """A format is written to standard output or to a file."""
    printed = run("--format", form)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.lower().startswith(start)
    assert "Report: x" in printed.stderr
    written = run("--format", form, "--out", str(tmp_path / "new" / "r"))
    assert written.stdout == ""
    kept = (tmp_path / "new" / "r").read_text(encoding="utf-8")
    assert kept.rstrip() == printed.stdout.rstrip()
    if form == "json":
        assert json.loads(printed.stdout)["study"]["name"] == "home-intents"


def test_csv_folder_or_single_table(tmp_path: Path) -> None:
    """CSV is a folder or one table."""
    run("--format", "csv", "--out", str(tmp_path / "csv"))
    files = {p.name: p.read_text() for p in (tmp_path / "csv").iterdir()}
    assert files == {f"{name}.csv": text for name, text in TABLES.items()}
    assert run("--format", "csv", "--table", "methods").stdout == TABLES["methods"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--format", "jsn"), "unknown-format", "did you mean 'json'"),
        (("--format", "csv", "--table", "method"), "unknown-table", "did you mean 'methods'"),
        (("--format", "csv", "--table", "zzz"), "unknown-table", "Known: curves, methods"),
        (("--format", "csv"), "csv-without-out", "--out DIR"),
        (("--format", "csv", "--table", "a", "--out", "b"), "csv-without-out", "--table NAME"),
        (("--table", "methods"), "table-without-csv", "--format csv"),
        (("--format", "md", "--hf-json"), "formats-clash", "one of them"),
        (("--out", "x"), "out-without-hf-json", "--format md"),
    ],
)
def test_conflicting_options_refused(arguments: tuple[str, ...], code: str, said: str) -> None:
    """Options that do not go together are refused."""
    refused = run(*arguments).exception
    assert isinstance(refused, UsageError)
    assert refused.code == code
    assert said in refused.try_


def opened(value: dict[str, Any]) -> StudyResult:
    found = StudyResult(Path("runs/x"))
    found.__dict__["report"] = value
    return found


class Elements(html.parser.HTMLParser):
    """Counts elements and keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_notebook_shows_verdict_forest_table() -> None:
    """A notebook shows the verdict, the forest plot and the table."""
    drawn = Elements(opened(report())._repr_html_())
    assert {"svg", "table", "circle"} <= set(drawn.tags)
    assert drawn.tags.count("table") == 2
    for said in ("Verdict", "Difference to the control", "All numbers", "OFT", "inconclusive"):
        assert said in drawn.words
    assert not {"script", "style", "link", "iframe"} & set(drawn.tags)
    assert not {"id", "class"} & drawn.attributes, "nothing that styles of the page would meet"


def test_untrusted_text_inert_in_notebook() -> None:
    """Untrusted text is inert in a notebook."""
    plain = Elements(opened(report())._repr_html_())
    values = hostile_report()
    values["recommendation"]["sentence"] = " ".join(ALL)
    values["warnings"] = list(ALL)
    for method, text in zip(values["methods"] * 9, ALL, strict=False):
        method["title"] = text
    drawn = Elements(opened(values)._repr_html_())
    assert set(drawn.tags) <= set(plain.tags)
    assert not [a for a in drawn.attributes if a.startswith("on")]
    assert drawn.attributes <= plain.attributes
    assert drawn.links == []
    assert "<script>" in drawn.words, "it is text"
    assert "<" not in opened(values)._repr_markdown_()
    assert strip_control_chars(repr(opened(values))) == repr(opened(values))


def test_notebook_comparison_values() -> None:
    """A comparison in a notebook shows its values."""
    found = opened(report())
    assert found.verdicts["lora"] == "control"
    assert found.sentence == report()["recommendation"]["sentence"]
    row = next(r for r in found.table() if r["method"] == "OFT")
    assert (row["score"], row["difference"], row["low"]) == (0.870, 0.008, -0.009)
    assert next(r for r in found.table() if r["verdict"] == "control")["difference"] is None
    assert "OFT: inconclusive, accuracy 0.87" in repr(found)
    assert "| OFT | inconclusive |" in found._repr_markdown_()
    nothing = opened(empty_report())
    assert "No recommendation yet." in repr(nothing)
    assert nothing._repr_html_()


def test_open_needs_study_imports_lazily(tmp_path: Path) -> None:
    """`bakeoff.open` needs a study, and importing bakeoff stays cheap."""
    with pytest.raises(UsageError, match="no-study"):
        bakeoff.open(tmp_path)
    assert "open" not in bakeoff.__all__
    text = "import bakeoff, sys; print(sorted(m for m in sys.modules if m.startswith('bakeoff')))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "['bakeoff', 'bakeoff.delivery']\n"  # the alias loads nothing
