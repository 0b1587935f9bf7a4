"""The verdict in a terminal: the answer, one table and the evidence, from the report."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from bakeoff.cli.display.output import err, escape_text, out, show_table
from bakeoff.cli.display.warning_lines import show_warnings
from bakeoff.core.format import MIB, format_cell, plural
from bakeoff.core.names import quote_path

WIDE, WIDER = 110, 125
"""Terminal columns from which the table shows costs, too, and the number of replicates."""


def show(
    report: dict[str, Any], folder: Path, warned: Collection[str] = (), verbose: bool = False
) -> None:
    """Print the recommendation, one row per method, and the warnings of the study in ``folder``.

    ``warned`` are warnings that were printed before. With ``verbose`` no warning is left out.
    """
    from bakeoff.report import evidence_texts
    from bakeoff.report.texts import lane_costs_text, saved_weights_text

    learnt = (report.get("learning") or {}).get("control_learnt") is not False
    style = "bold" if learnt else "bold yellow"
    out.print(f"\n[{style}]{escape_text(report['recommendation']['sentence'])}[/]\n")
    if learnt and (certainty := evidence_texts.certainty_text(report)) is not None:
        out.print(f"{escape_text(certainty)}\n")
    points = report["study"]["unit"] == "fraction"
    scale, form = (100.0, ".1f") if points else (1.0, ".4g")
    metric = report["study"]["metric"] + (" %" if points else "")
    columns = ["method", metric, "difference (95 % interval)", "<verdict"]
    rows = [_verdict_cells(m, scale, form) for m in report["methods"]]
    if out.width >= WIDE:
        if out.width >= WIDER and evidence_texts.is_replicated(report):
            columns.append("replicates")
            rows = [(*r, str(m["n_seeds"])) for r, m in zip(rows, report["methods"], strict=True)]
        columns += ["adjusted p", "lr", "parameters", "peak MiB", "ms/step"]
        rows = [r + _cost_cells(m) for r, m in zip(rows, report["methods"], strict=True)]
        if any(m["forgetting"] for m in report["methods"]):
            columns.append("forgetting")
            rows = [(*r, _forgetting_cell(m)) for r, m in zip(rows, report["methods"], strict=True)]
    show_table(columns, rows)
    _show_evidence(report)
    study, base = report["study"], report.get("base")
    n_seeds = max((m["n_seeds"] or 0 for m in report["methods"]), default=0)
    seeds = "" if evidence_texts.is_replicated(report) else f"{plural(n_seeds, 'seed')}, "
    out.print(
        f"\n{study['n_test_items']} test items, {seeds}"
        f"{study['steps']} steps per trial, margin {format_cell(study['margin'], form, scale)}"
        + (" points" if points else "")
        + f"; intervals are simultaneous. Base: {escape_text(study['base'])}"
        + (f" ({escape_text(study['base_note'])})" if study["base_note"] else "")
    )
    if base is not None:
        estimate, low, high = (
            format_cell(base["score"][k], form, scale) for k in ("estimate", "low", "high")
        )
        out.print(
            f"Base model without fine-tuning: {escape_text(metric)} {estimate} ({low} to {high})"
        )
    if (lanes := lane_costs_text(report)) is not None:
        out.print(escape_text(f"{lanes}."), soft_wrap=True)
    if (weights := saved_weights_text(report, f"{folder}/")) is not None:
        out.print(escape_text(weights), soft_wrap=True)
    where = "in the report under Warnings; `--verbose` prints them."
    show_warnings(err, report["warnings"], where, shown=warned, verbose=verbose)
    show_failed(report, folder)


def _show_evidence(report: dict[str, Any]) -> None:
    """Print what limits the contenders that are not settled, and what the verdicts rest on."""
    from bakeoff.report import evidence_texts

    lines = evidence_texts.unsettled_lines(report)
    if lines:
        out.print()
    for line in lines:
        out.print(escape_text(line), soft_wrap=True)
    facts = evidence_texts.evidence_facts(report)
    if facts:
        out.print()
    for name, text in facts:
        out.print(f"[dim]{escape_text(name)}:[/] {escape_text(text)}", soft_wrap=True)
    caveats = (evidence_texts.exploratory_caveat(report), evidence_texts.stop_caveat(report))
    for caveat in caveats:
        if caveat is not None:
            out.print(escape_text(caveat), soft_wrap=True)


def show_failed(report: dict[str, Any], folder: Path) -> None:
    """Print how many trials failed and the command that retries them."""
    from bakeoff.report.texts import retry_hint

    if (how := retry_hint(report, quote_path(folder))) is not None:
        err.print(f"[yellow]failed:[/] {escape_text(how)}", soft_wrap=True)


def _verdict_cells(method: dict[str, Any], scale: float, form: str) -> tuple[str, ...]:
    from bakeoff.report.texts import verdict_text

    score, difference = method["score"], method["difference"]
    text = "-"
    if difference is not None:
        estimate, low, high = (
            format_cell(difference[k], "+" + form, scale) for k in ("estimate", "low", "high")
        )
        text = estimate if difference["low"] is None else f"{estimate} ({low} to {high})"
    verdict = verdict_text(method)
    if method["status"] != "done":
        verdict = f"{method['status']}: {method['reason'] or ''}"
    return (method["title"], format_cell(score and score["estimate"], form, scale), text, verdict)


def _forgetting_cell(method: dict[str, Any]) -> str:
    """Format the change in loss on general text, in nats per token."""
    found = method["forgetting"]
    return format_cell(found and found["estimate"], "+.3f")


def _cost_cells(method: dict[str, Any]) -> tuple[str, ...]:
    difference, cost, setting = method["difference"], method["cost"], method["setting"] or {}
    return (
        format_cell(difference and difference["p_adjusted"], ".3f"),
        format_cell(setting.get("learning_rate"), ".0e"),
        format_cell(cost["trainable_parameters"], ",.0f"),
        format_cell(cost["train_peak_bytes"], ",.0f", 1 / MIB),
        format_cell(cost["step_milliseconds"], ".0f"),
    )
