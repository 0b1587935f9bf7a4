"""Verdict: the recommendation and how sure it is, each contender's verdict, the evidence."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bakeoff.core.format import DASH, format_p_value, plural, score_unit
from bakeoff.core.warning_codes import VERDICT, group_of, sort_warnings
from bakeoff.report import evidence_texts
from bakeoff.report.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Facts,
    SectionView,
    TableBlock,
    TableRow,
    Text,
    Tile,
    Tiles,
)
from bakeoff.report.texts import lower_is_better, method_title, saved_weights_text, verdict_text

ORDER = 10
TITLE = "Verdict"

_WORDS = {
    "better": "better than the control",
    "equivalent": "equivalent within the margin",
    "worse": "worse than the control",
    "inconclusive": "inconclusive",
    "none": "without a verdict",
}


def build(report: dict[str, Any]) -> SectionView:
    """Show the recommendation, the number of contenders by verdict, and the study's settings."""
    sentence = (report.get("recommendation") or {}).get("sentence")
    learnt = (report.get("learning") or {}).get("control_learnt") is not False
    blocks: list[Block] = [*_lead(sentence or "There is no recommendation yet.", learnt)]
    replicated = evidence_texts.is_replicated(report)
    certainty = evidence_texts.certainty_text(report) if learnt else None
    blocks += [Text(certainty)] if certainty else []
    if not report.get("complete", True):
        blocks.append(Text("This study is not finished: its results may change.", "warning"))
    blocks.append(Tiles(_counts(report.get("methods") or [])))
    if replicated:
        blocks += _replicated_evidence(report)
    elif learnt and (evidence := _evidence(report)):
        blocks.append(Text(evidence, "muted"))
    weights = saved_weights_text(report)
    blocks += [Text(weights, "muted")] if weights else []
    warnings = sort_warnings(report.get("warnings") or [])
    first = [w for w in warnings if group_of(w) == VERDICT]
    blocks += [Text(w, "warning") for w in first]
    if rest := len(warnings) - len(first):
        blocks.append(Text(f"{plural(rest, 'more warning')}: see Warnings below.", "muted"))
    blocks.append(Facts(_question(report["study"], evidence_texts.control_title(report))))
    return SectionView(tuple(blocks))


def _replicated_evidence(report: dict[str, Any]) -> list[Block]:
    """Say what is known of each contender, then on what evidence."""
    rows = tuple(
        TableRow(
            (
                Cell(method_title(m)),
                Cell(verdict_text(m), tone=m.get("verdict") or "none"),
                Cell(evidence_texts.meaning_text(report, m), long=True),
                Cell(evidence_texts.replicates_text(report, m)),
            )
        )
        for m in report.get("methods") or []
        if m.get("method") != report["study"].get("control")
    )
    columns = (
        Column("Contender"),
        Column("Verdict"),
        Column("What it means"),
        Column("Replicates"),
    )
    blocks: list[Block] = [TableBlock("Verdict of every contender", columns, rows)] if rows else []
    if facts := evidence_texts.evidence_facts(report):
        blocks.append(Facts(tuple(Fact(name, text) for name, text in facts)))
    if caveat := evidence_texts.exploratory_caveat(report):
        blocks.append(Text(caveat, "warning"))
    if caveat := evidence_texts.stop_caveat(report):
        blocks.append(Text(caveat, "muted"))
    return blocks


def _lead(sentence: str, learnt: bool) -> list[Text]:
    """Return the headline; what follows the evidence of a control without gain is a paragraph."""
    head, end, rest = sentence.partition("). ")
    if learnt or not rest:
        return [Text(sentence, "headline")]
    return [Text(head + end.strip(), "headline"), Text(rest)]


def _evidence(report: dict[str, Any]) -> str | None:
    """Describe the evidence for the contender with the best difference to the control."""
    study, methods = report["study"], report.get("methods") or []
    unit, sign = score_unit(study), -1 if lower_is_better(study) else 1
    known = [m for m in methods if (m.get("difference") or {}).get("estimate") is not None]
    if not known:
        return None
    best = max(known, key=lambda m: sign * m["difference"]["estimate"])
    difference = best["difference"]
    parts = [
        f"Best contender: {method_title(best)}, {unit.with_interval(difference, signed=True)} "
        f"{unit.word} against the control".replace("  ", " ")
    ]
    if difference.get("p_adjusted") is not None:
        parts.append(f"adjusted p {format_p_value(difference['p_adjusted'])}")
    if best.get("n_seeds"):
        parts.append(plural(best["n_seeds"], "seed"))
    if study.get("n_test_items") is not None:
        parts.append(plural(study["n_test_items"], "test item"))
    settings = (best.get("n_settings") or 0) - (best.get("n_settings_added") or 0)
    if settings:
        parts.append(f"{plural(settings, 'setting')} tried on validation")
    return ", ".join(parts) + "."


def _counts(methods: list[dict[str, Any]]) -> tuple[Tile, ...]:
    verdicts = Counter(m.get("verdict") or "none" for m in methods)
    return tuple(
        Tile(str(verdicts[key]), word, key)
        for key, word in _WORDS.items()
        if verdicts[key] or key != "none"
    )


def _question(study: dict[str, Any], control: str) -> tuple[Fact, ...]:
    unit = score_unit(study)
    direction = "lower is better" if lower_is_better(study) else "higher is better"
    items = [
        plural(study[key], f"{split} item")
        for split, key in (
            ("training", "n_train_items"),
            ("validation", "n_validation_items"),
            ("test", "n_test_items"),
        )
        if study.get(key) is not None
    ]
    base = str(study.get("base") or DASH)
    note = f" ({study['base_note']})" if study.get("base_note") else ""
    margin = study.get("margin")
    return (
        Fact("Base model", base + note),
        Fact("Task", str(study.get("task") or DASH)),
        Fact("Metric", f"{study.get('metric') or DASH}, {direction}"),
        Fact("Margin", "none" if margin is None else f"±{unit.plain(margin)} {unit.word}".strip()),
        Fact("Control", control),
        Fact("Data", ", ".join(items) or DASH),
    )
