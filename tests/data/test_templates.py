"""Templates: columns of any name, paths into nested values, and braces that are text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeoff.core.errors import PreflightError
from bakeoff.data.checks import cells
from bakeoff.data.checks.context import CheckContext
from bakeoff.data.templates import (
    cell_of,
    columns_of,
    escape_text,
    has_cell,
    render_template,
    text_between,
)
from bakeoff.tasks.choice import Choices

ROW: dict[str, Any] = {
    "a": 1,
    "User Question": "why?",
    "review-body": "good",
    "ns:key": "n",
    "Größe (cm)": 180,
    "v.1": "exact",
    "v": {"1": "path"},
    "translation": {"en": "cat", "de": {"formal": "Katze"}},
    "answers": {"text": ["four", "4"], "start": [3, 9]},
    "turns": [{"role": "user", "content": "Hi"}],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a", "1"),
        ("User Question", "why?"),
        ("{User Question} -- {review-body}", "why? -- good"),
        ("{ns:key}/{Größe (cm)}", "n/180"),
        ("{v.1}", "exact"),
        ("{translation.en} {translation.de.formal}", "cat Katze"),
        ("translation.en", "cat"),
        ("{answers.text.0}, {answers.text.1}", "four, 4"),
        ("{turns.0.content}", "Hi"),
        ("{{q}} {a}", "{q} 1"),
        ("{{{a}}}", "{1}"),
        ('{{"answer": "{a}"}}', '{"answer": "1"}'),
    ],
)
def test_template_text(template: str, text: str) -> None:
    assert render_template(template, ROW) == text


def test_template_columns() -> None:
    assert columns_of("Q: {question} {context}") == ("question", "context")
    assert columns_of("plain name") == ("plain name",)
    assert columns_of("{{q}} {User Question}") == ("User Question",)
    assert text_between("{a}, {b c}") == ", "
    assert text_between("a") == ""


def test_values_are_not_templates() -> None:
    """A value with braces stays as it is, and no attribute is read."""
    assert render_template("{x}{y}", {"x": "{y}", "y": "2"}) == "{y}2"
    assert not has_cell({"a": 1}, "a.real")
    with pytest.raises(KeyError):
        render_template("{a!r}", {"a": 1})


@pytest.mark.parametrize("path", ["answers.text.2", "answers.nope", "turns.x", "a.b", "turns.-1"])
def test_missing_path(path: str) -> None:
    with pytest.raises(KeyError):
        cell_of(ROW, path)


@pytest.mark.parametrize(
    ("template", "escaped"),
    [
        ('{"x": "{a}"}', '{{"x": "{a}"}}'),
        ('{"x": {"y": {a}}}', '{{"x": {{"y": {a}}}}}'),
        ("{a} {", "{a} {{"),
        ("a} {a}", "a}} {a}"),
        ("{} {a}", "{{}} {a}"),
        ("{ } {a}", "{{ }} {a}"),
    ],
)
def test_unmatched_brace_refused(template: str, escaped: str) -> None:
    """A brace that is no column is refused, and the hint works when it is followed."""
    with pytest.raises(PreflightError) as error:
        columns_of(template)
    assert error.value.code == "template-braces"
    assert f"`{escaped}`" in error.value.try_
    assert columns_of(escaped) == ("a",)
    assert render_template(escaped, {"a": "{a}"}) == template


@given(st.text(alphabet="ab{} .", max_size=12))
def test_escaped_text_is_text(text: str) -> None:
    """Text whose braces are all doubled is never a column."""
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert render_template(doubled + "{a}", {"a": "!"}) == text + "!"


@given(
    st.lists(st.sampled_from(["{one}", "{two_2}", "é", " ", ".", "\n"]), max_size=8).map("".join)
)
def test_word_templates_render_as_before(template: str) -> None:
    """Templates of plain names render as they did when only those were columns."""
    row = {"one": "{two_2}", "two_2": 2, template: "whole"}
    if "{" not in template:
        assert render_template(template, row) == "whole"
    else:
        by_hand = template.replace("{one}", "\0").replace("{two_2}", "2").replace("\0", "{two_2}")
        assert render_template(template, row) == by_hand


def issues_of(template: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    context = CheckContext(
        fields={"text": template}, structured=frozenset(), texts=lambda row: ("", ""), group=None,
        cut={}, sampled=False, batch_size=1,
    )  # fmt: skip
    return {issue.code: issue for issue in cells.check("train", rows, context)}


@pytest.mark.parametrize(
    ("template", "near"),
    [
        ("{User Qestion}", "User Question"),
        ("{review body}", "review-body"),
        ("{ a }", "a"),
        ("{translation.eng}", "translation.en"),
    ],
)
def test_unknown_column_near_match(template: str, near: str) -> None:
    """A name that is no column is refused with the closest one."""
    issue = issues_of(f"{template} {{a}}", [ROW])["column-missing"]
    assert issue.fatal
    assert f"did you mean '{near}'?" in issue.try_


def test_json_in_template_refused() -> None:
    """JSON in a template is refused with the text that escapes it."""
    issue = issues_of('{"kind": 1} {a}', [ROW])["column-missing"]
    assert issue.fatal
    assert '`{{"kind": 1}} {a}`' in issue.try_


def test_escaped_column_is_listed() -> None:
    """Double braces around a column's name are text, with a warning."""
    issue = issues_of("{{review-body}} {a}", [ROW])["column-escaped"]
    assert not issue.fatal
    assert "`{review-body}` stands for the column" in issue.try_
    assert "column-escaped" not in issues_of("{{other}} {a}", [ROW])


def test_nested_value_hint() -> None:
    """A list or an object in place of text is refused with a path that works."""
    issue = issues_of("{translation}", [ROW])["not-text"]
    assert "`{translation.en}`" in issue.try_
    assert "column-missing" not in issues_of("{translation.en}", [ROW])


def test_missing_path_names_rows() -> None:
    """Rows that lack a nested value are named."""
    rows = [ROW, {**ROW, "translation": {"de": "x"}}, {**ROW, "translation": None}]
    issue = issues_of("{translation.en}", rows)["column-missing"]
    assert issue.rows == (1, 2)


def test_choices_from_paths() -> None:
    """The choices of a row may be nested."""
    row = {"options": {"a": "yes", "b": "no"}, "list": {"text": ["x", "y"]}}
    assert Choices.parse("{options.a}, {options.b}", row).texts == ("yes", "no")
    assert Choices.parse("list.text", row).texts == ("x", "y")


def test_escape_text_keeps_escapes() -> None:
    assert escape_text('{{"a": {b}}}') == '{{"a": {b}}}'
    assert escape_text("line {\n{a}") == r"line {{\n{a}"
