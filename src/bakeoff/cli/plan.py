"""``bakeoff plan``: check a study without running it; print its trials, costs and power."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from bakeoff.cli.display.output import (
    JSON_OPTION,
    VERBOSE_OPTION,
    err,
    escape_text,
    out,
    show_json,
    show_table,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(command)


def command(
    study: Path = typer.Argument(..., help="A study.toml."),
    time_it: bool = typer.Option(
        True,
        "--time/--no-time",
        help="Time a few steps of each method to estimate the duration.",
    ),
    show: int = typer.Option(
        0,
        "--show",
        min=0,
        help="Print this many training rows as tokens, supervised tokens on separate lines.",
    ),
    verbose: bool = VERBOSE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a study; print its trials, their cost and the smallest difference it would detect."""
    from bakeoff import api
    from bakeoff.cli.display.progress import LiveProgress
    from bakeoff.cli.display.token_view import show_rows
    from bakeoff.study.config import read_spec
    from bakeoff.study.planning.time_budget import BudgetPlan, describe

    spec = read_spec(study)
    with LiveProgress(err, verbose=verbose) as live:
        overview = api.overview(spec, study.parent, live, time_it, show)
    if as_json:
        show_json(overview)
        return
    counts = overview["n_items"]
    out.print(
        f"{escape_text(overview['name'])}: {counts['train']} train, {counts['validation']} "
        f"validation, {counts['test']} test items; {overview['precision']} on {overview['device']}"
    )
    if parts := describe_memory(overview):
        out.print(escape_text("; ".join(parts)))
    show_table(
        ("method", "search trials", "final trials", "steps", "learning rates", "<vLLM"),
        [
            (
                m["title"],
                str(m["search_trials"]),
                str(m["final_trials"]),
                f"{m['steps']:,}",
                ", ".join(f"{r:g}" for r in m["learning_rates"]),
                m["vllm"] or "-",
            )
            for m in overview["methods"]
        ],
    )
    if overview["hours"] is not None:
        out.print(
            escape_text(describe(BudgetPlan(**overview["hours"]), overview["methods"][0]["title"]))
        )
    if overview["sizes"] is not None:
        show_sizes(overview["sizes"])
    show_totals(overview)
    show_rows(overview["rows"] or [], overview["added_tokens"])


def describe_memory(overview: dict[str, Any]) -> list[str]:
    """Return phrases on how the study saves memory; an empty list if it does not."""
    parts = []
    if overview["quantize"] is not None:
        parts.append(f"base quantised to {overview['quantize']} with {overview['quantizer']}")
    if overview["micro_tokens"] is not None:
        parts.append(f"at most {overview['micro_tokens']:,} tokens per pass")
    if overview["checkpointing"] == "on":
        parts.append("gradient checkpointing")
    return parts


def show_sizes(sizes: list[dict[str, Any]]) -> None:
    """Print the size at which each method matches the target number of parameters."""
    show_table(
        ("method", "parameters", "off target", "<size", "<note"),
        [
            (
                s["method"],
                "-" if s["parameters"] is None else f"{s['parameters']:,}",
                "-" if s["off"] is None else f"{100 * s['off']:+.1f} %",
                "-" if s["value"] is None else f"{s['argument']} = {s['value']}",
                s["note"] or "",
            )
            for s in sizes
        ],
    )


def show_totals(overview: dict[str, Any]) -> None:
    """Print the amount of work in a study and the difference it would detect."""
    out.print(
        f"{overview['trials']} trials in {overview['segments']} segments, {overview['steps']:,} "
        f"steps without racing, {len(overview['methods'])} cost probes"
    )
    if overview["rungs"]:
        rungs = " and ".join(str(r) for r in overview["rungs"])
        saved = overview["steps"] / overview["steps_raced"]
        out.print(
            f"settings race at steps {rungs}: about {overview['steps_raced']:,} steps, {saved:.1f} "
            "times fewer; still fewer if whole methods stop"
        )
    if (
        overview["detectable"] is not None and overview["hours"] is None
    ):  # the time budget's sentence has it
        out.print(
            f"a true difference of {100 * overview['detectable']:.1f} points would be detected in "
            f"80 % of such studies (margin: {100 * overview['margin']:g} points)"
        )
    if overview["estimate"]:
        show_estimate(overview["estimate"])


def show_estimate(found: dict[str, Any]) -> None:
    """Print the estimated time with its range and by phase, peak memory and disk space."""
    minutes = {k: found[k] / 60 for k in ("seconds", "low", "high", "in_full_seconds")}
    out.print(
        f"about {minutes['seconds']:.1f} minutes ({minutes['low']:.1f} to {minutes['high']:.1f}); "
        f"{minutes['in_full_seconds']:.1f} without racing"
    )
    names = [phase["name"] for phase in found["phases"]]
    methods = {m for phase in found["phases"] for m in phase["seconds"]}
    show_table(
        ("seconds of", *names),
        [(m, *(f"{p['seconds'][m]:.0f}" for p in found["phases"])) for m in sorted(methods)],
    )
    for method, reason in found["untimed"].items():
        out.print(escape_text(f"{method} could not be timed: {reason}"))
    if found["peak_bytes"] is not None:
        out.print(f"peak memory about {found['peak_bytes'] / 2**30:.1f} GiB", end="; ")
    out.print(f"disk about {found['disk_bytes'] / 2**20:.0f} MiB")
