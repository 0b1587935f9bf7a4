"""The verdict as GitHub-flavoured Markdown, for pull requests, issues and notes.

Names and errors are untrusted input, so every text is escaped: it cannot add markup, links, images,
HTML, mentions or references.
"""

from __future__ import annotations

import re
from typing import Any

from bakeoff.core.format import (
    DASH,
    DisplayUnit,
    format_bytes,
    format_milliseconds,
    format_p_value,
    format_setting,
    plural,
    score_unit,
)
from bakeoff.core.redact import strip_control_chars
from bakeoff.report import evidence_texts
from bakeoff.report.sanitize import clean
from bakeoff.report.texts import method_title, saved_weights_text, verdict_text

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_LEADING = re.compile(r"^([#=]|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))")
_JOINER = "\N{WORD JOINER}"
# GitHub links bare addresses, @names and #numbers after it has undone all escapes: only an
# invisible character between their parts prevents it.
_LINKING = re.compile(r"(?<=@)|(?<=#)(?=\d)|(?<=[A-Za-z]:)(?=/)|(?<=[wW]{3})(?=\.)")
_HEADINGS = ("Method", "Verdict", "Score", "Difference", "p", "Seeds", "Setting", "Peak memory",
             "Step", "Adapter")  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Return the verdict, the table and the warnings as Markdown."""
    report = clean(report)
    study, methods = report["study"], report.get("methods") or []
    sentence = (report.get("recommendation") or {}).get("sentence")
    parts = [
        f"## {escape_markdown(str(study.get('name') or 'study'))}",
        f"**{escape_markdown(sentence or 'There is no recommendation yet.')}**",
    ]
    learnt = (report.get("learning") or {}).get("control_learnt") is not False
    if learnt and (certainty := evidence_texts.certainty_text(report)) is not None:
        parts.append(escape_markdown(certainty))
    parts.append(_study_line(study))
    if not report.get("complete", True):
        parts.append("This study is not finished: its results may change.")
    if methods:
        parts.append(_table(report, methods))
    parts += _evidence(report)
    if weights := saved_weights_text(report):
        parts.append(escape_markdown(weights))
    if warnings := report.get("warnings"):
        parts.append("### Warnings\n\n" + "\n".join(f"- {escape_markdown(w)}" for w in warnings))
    failures = [m for m in methods if m.get("reason")]
    if failures:
        lines = (
            f"- {escape_markdown(method_title(m))}: {escape_markdown(str(m['reason']))}"
            for m in failures
        )
        parts.append("### Methods without a result\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown shows it literally, on one line."""
    line = " ".join(strip_control_chars(text).split())
    line = _LINKING.sub(_JOINER, line)
    line = "".join(_ENTITIES.get(c, c) for c in line)
    line = _MARKUP.sub(r"\\\1", line)
    return _LEADING.sub(lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", line)


def _study_line(study: dict[str, Any]) -> str:
    unit, margin = score_unit(study), study.get("margin")
    parts = [f"Base {study.get('base') or DASH}", f"metric {study.get('metric')}"]
    if margin is not None:
        parts.append(f"margin ±{unit.plain(margin)} {unit.word}".rstrip())
    if study.get("n_test_items") is not None:
        parts.append(plural(study["n_test_items"], "test item"))
    return escape_markdown(", ".join(parts)) + "."


def _evidence(report: dict[str, Any]) -> list[str]:
    """List what limits the contenders that are not settled, and what the verdicts rest on."""
    lines = evidence_texts.unsettled_lines(report)
    lines += [f"{name}: {text}." for name, text in evidence_texts.evidence_facts(report)]
    caveats = (evidence_texts.exploratory_caveat(report), evidence_texts.stop_caveat(report))
    lines += [caveat for caveat in caveats if caveat is not None]
    if not lines:
        return []
    return ["### Evidence\n\n" + "\n".join(f"- {escape_markdown(line)}" for line in lines)]


def _table(report: dict[str, Any], methods: list[dict[str, Any]]) -> str:
    study, replicated = report["study"], evidence_texts.is_replicated(report)
    unit = score_unit(study)
    hint = f" ({escape_markdown(unit.word)})" if unit.word else ""
    heads = [h + (hint if h in ("Score", "Difference") else "") for h in _HEADINGS]
    if replicated:
        heads[_HEADINGS.index("Seeds")] = "Replicates"
    aligned = ["---" if h in ("Method", "Verdict", "Setting") else "---:" for h in _HEADINGS]
    rows = [heads, aligned, *(_row(study, m, unit) for m in methods)]
    note = "Intervals are 95 %; those of differences are simultaneous over all contenders"
    note += " and looks." if replicated else "."
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{note}"


def _row(study: dict[str, Any], method: dict[str, Any], unit: DisplayUnit) -> list[str]:
    cost = method.get("cost") or {}
    name = escape_markdown(method_title(method))
    is_control = method.get("method") == study.get("control")
    cells = (
        verdict_text(method),
        unit.with_interval(method.get("score")),
        unit.with_interval(method.get("difference"), signed=True),
        format_p_value((method.get("difference") or {}).get("p_adjusted")),
        DASH if method.get("n_seeds") is None else str(method["n_seeds"]),
        format_setting(method.get("setting")),
        format_bytes(cost.get("train_peak_bytes")),
        format_milliseconds(cost.get("step_milliseconds")),
        format_bytes(cost.get("adapter_bytes")),
    )
    return [f"**{name}**" if is_control else name, *map(escape_markdown, cells)]
