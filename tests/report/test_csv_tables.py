"""The report's figures as CSV and Markdown: raw numbers, and nothing in them that acts."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from helpers.report_fixture import HOSTILE, empty_report, hostile_report, report
from markdown_it import MarkdownIt

from bakeoff.report import markdown, tables
from bakeoff.report.csv_tables import csv_cell
from bakeoff.report.markdown import escape_markdown


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_figures_have_raw_tables() -> None:
    """Every figure has a table with its raw numbers."""
    made, found = report(), tables(report())
    assert " ".join(found) == (
        "methods differences pareto fairness race sensitivity curves items examples stability "
        "costs failures"
    )
    oft = rows(found["methods"])[1]
    assert (oft["title"], float(oft["score_estimate"]), oft["gain_low"]) == ("OFT", 0.870, "")
    assert json.loads(oft["setting"]) == {"learning_rate": 5e-4}
    assert int(oft["train_peak_bytes"]) == made["methods"][1]["cost"]["train_peak_bytes"]
    assert [r["method"] for r in rows(found["differences"])] == [
        m["method"] for m in made["methods"]
    ]
    front = {r["method"]: r for r in rows(found["pareto"])}
    assert front["ia3"]["on_front_train_peak_bytes"] == "true"
    assert float(front["ia3"]["probability_train_peak_bytes"]) == 1.0
    points = [p for m in made["methods"] for c in m["curves"] for p in c["points"]]
    assert len(rows(found["curves"])) == len(points)
    example = rows(found["examples"])[0]
    assert (example["kind"], example["reference"]) == ("wins", "HassLightSet")
    assert rows(found["items"])[0]["only_contender"] == "77"
    assert [r["reason"] for r in rows(found["failures"])] == [f["reason"] for f in made["failures"]]


def test_retried_trials_have_table() -> None:
    """Retried trials have a table."""
    made = report()
    made["retried"] = [{**made["failures"][0], "at": "2026-01-02T03:04:05+00:00"}]
    (row,) = rows(tables(made)["retried"])
    assert (row["at"], row["status"]) == ("2026-01-02T03:04:05+00:00", "diverged")


def test_small_study_has_few_tables() -> None:
    """A study without optional parts has few tables."""
    assert not {"items", "examples", "race", "costs", "curves"} & set(tables(empty_report()))
    bare: dict[str, Any] = {"schema": 1, "study": {}, "methods": []}
    assert tables(bare) == {}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\N{FULLWIDTH EQUALS SIGN}"])
def test_no_cell_is_a_formula(start: str) -> None:
    attack = start + 'HYPERLINK("http://x")'
    assert csv_cell(attack) == "'" + attack
    made = report()
    made["methods"][1] |= {"title": attack, "reason": attack}
    for method in made["methods"]:
        method["method"] = f"{start}{method['method']}"
    made["failures"][0]["reason"] = attack
    made["items"]["methods"][0]["wins"][0]["contender"] = attack
    number = re.compile(r"-?[\d.]+(e[+-]?\d+)?")
    for text in tables(made).values():
        for row in csv.reader(io.StringIO(text, newline="")):
            for value in row:
                assert not value.startswith(start) or number.fullmatch(value), value


@pytest.mark.parametrize(
    ("value", "written"),
    [("-5", "-5"), ("+1e-3", "+1e-3"), (-0.009, "-0.009"), ("-5 apples", "'-5 apples"), (None, ""),
     (True, "true"), ("-1+cmd|'/C calc'!A0", "'-1+cmd|'/C calc'!A0"), ({"r": 8}, '{"r": 8}')],
)  # fmt: skip
def test_numbers_stay_numbers(value: Any, written: str) -> None:
    assert csv_cell(value) == written


ATTACKS = (
    *HOSTILE,
    "[click](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "<http://evil>",
    "# heading",
    "- item\n\n- item",
    "1. item",
    "a | b | c",
    "`code` **bold** _em_ ~~gone~~ $x$",
    "[ref]: http://evil\n\n[ref]",
    "&lt;b&gt; \\<b>",
    "    indented",
    "```\nfence",
    "---",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for made in (
        f"- {escape_markdown(text)}\n",
        f"## {escape_markdown(text)}\n",
        f"x\n\n{escape_markdown(text)}\n",
    ):
        tags = set(re.findall(r"<(\w+)", parser.render(made)))
        assert tags <= {"ul", "li", "h2", "p"}, made
    html = parser.render(f"| a | b |\n| - | - |\n| {escape_markdown(text)} | end |\n")
    assert html.count("<td>") == 2
    assert "<td>end</td>" in html
    shown = " ".join(re.sub(r"[\x00-\x1f\ufffd\u202e\ud800]", " ", text).split())
    plain = html.partition("<td>")[2].partition("</td>")[0]
    for mark, entity in (("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("&", "&amp;")):
        plain = plain.replace(entity, mark) if mark != "&" else plain.replace(entity, "&")
    plain = plain.replace("\N{WORD JOINER}", "").replace("\ufffd", " ")
    assert " ".join(plain.split()) == shown


def test_markdown_autolinks_broken() -> None:
    """Nothing that GitHub would link automatically is left whole."""
    made = escape_markdown(
        "see https://evil.example, www.evil.example, @team, a@evil.example and #12"
    )
    assert not re.search(r"https?://|www\.|@\w|#\d", made)
    assert made.replace("\N{WORD JOINER}", "") == (
        "see https://evil.example, www.evil.example, @team, a@evil.example and #12"
    )


def test_markdown_has_verdict_table_and_warnings() -> None:
    made = markdown(report())
    html = MarkdownIt("commonmark").enable("table").render(made)
    assert f"<strong>{report()['recommendation']['sentence']}</strong>" in html
    assert html.count("<tr>") == 1 + len(report()["methods"])
    assert "<strong>LoRA</strong>" in html
    assert "+0.8 (−0.9 to +2.5)" in made
    assert "- The best learning rate of VeRA is the highest tried." in made
    assert "every setting diverged" in made
    hostile = MarkdownIt("commonmark").enable("table").render(markdown(hostile_report()))
    allowed = {"h2", "h3", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert set(re.findall(r"<(\w+)", hostile)) <= allowed
    assert "There is no recommendation yet." in markdown(empty_report())
