"""Texts from report.json that sections, the Markdown and the terminal share."""

from __future__ import annotations

from typing import Any

from bakeoff.core.format import format_lane_costs, format_significant, format_status, plural


def method_title(method: dict[str, Any]) -> str:
    """Return a method's name for people."""
    return str(method.get("title") or method.get("method") or "?")


def verdict_text(method: dict[str, Any]) -> str:
    """Return a method's verdict as words, with notes: exploratory, not learnt."""
    verdict = method.get("verdict") or "none"
    if verdict == "none":
        is_compared = method.get("status") == "done" and method.get("difference")
        verdict = "no verdict" if is_compared else format_status(method.get("status"))
    if exploratory := (method.get("difference") or {}).get("exploratory"):
        verdict = f"{verdict} (exploratory: {exploratory})"
    learning = method.get("learning")
    return verdict if learning is None or learning["learnt"] else f"{verdict}, not learnt"


def lane_costs_text(report: dict[str, Any]) -> str | None:
    """Return what lanes cost in steps of a single trial, None if no method's were timed."""
    rows = [(method_title(m), m.get("cost") or {}) for m in report.get("methods") or []]
    return format_lane_costs(
        (title, cost.get("lanes_timed"), cost.get("lanes_ratio")) for title, cost in rows
    )


def lower_is_better(study: dict[str, Any]) -> bool:
    """Tell whether a smaller value of the study's metric is the better one."""
    return study.get("better") == "lower"


def retry_hint(report: dict[str, Any], folder: str = "FOLDER") -> str | None:
    """Return the command that runs failed trials again; None where there is none.

    Once a replicate was scored on test, or its method has a verdict, its failed trials stay; so do
    those of an older protocol's search.
    """
    failed = [
        f for f in report.get("failures") or [] if f.get("status") in ("failed", "out_of_memory")
    ]
    if not failed or report.get("imported"):
        return None
    rows = {m.get("method"): m for m in report.get("methods") or []}
    n_kept = sum(_stays_failed(f, rows) for f in failed)
    sentences = []
    if n_kept < len(failed):
        runs = plural(len(failed) - n_kept, "run")
        sentences.append(f"{runs} failed. To retry: `bakeoff run {folder} --retry`.")
    if n_kept:
        sentences.append(
            f"{plural(n_kept, 'run')} failed, and settings were chosen without them. To "
            f"start over: `bakeoff run {folder} --fork NEW`."
        )
    return " ".join(sentences)


def _stays_failed(failure: dict[str, Any], rows: dict[str | None, dict[str, Any]]) -> bool:
    """Return whether a failed trial is not run again, because the results are known by now."""
    if failure.get("phase") == "search":
        return any(row.get("score") for row in rows.values())
    row = rows.get(failure.get("method")) or {}
    if failure.get("phase") != "replicate":
        return False
    scored = any(seed.get("seed") == failure.get("seed") for seed in row.get("seeds") or [])
    return scored or row.get("verdict") not in ("control", "none", None)


def saved_weights_text(report: dict[str, Any], folder: str = "") -> str | None:
    """Return where the recommended method's weights are, and that they match the training.

    ``folder`` is the study's, with a slash. None where the weights were not loaded again or gave
    another loss: a warning of the report says that.
    """
    recommended = (report.get("recommendation") or {}).get("method")
    row: dict[str, Any] = next(
        (m for m in report.get("methods") or [] if m.get("method") == recommended), {}
    )
    artifact = row.get("artifact")
    if not artifact or not artifact.get("same"):
        return None
    return (
        f"{method_title(row)}'s weights: {folder}{artifact['path']} (seed {artifact['seed']}, the "
        f"best on validation). Reloaded without bakeoff, they give a validation loss of "
        f"{format_significant(artifact['reloaded_loss'])} "
        f"({format_significant(artifact['loss'])} at the end of training)."
    )
