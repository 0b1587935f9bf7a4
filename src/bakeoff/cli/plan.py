"""``bakeoff plan``: check a study without running it; print its rounds, price and power."""

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
from bakeoff.core.format import format_lane_costs, plural

RARE = 0.005
"""A verdict that fewer studies than these reach counts as impossible."""
NO_SEEDS = ", at any number of seeds"


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
    """Check a study; print what it would run, what that takes and what it could show."""
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
        ("method", "learning rates", "<vLLM"),
        [
            (m["title"], ", ".join(f"{r:g}" for r in m["learning_rates"]), m["vllm"] or "-")
            for m in overview["methods"]
        ],
    )
    if overview["hours"] is not None:
        out.print(
            escape_text(describe(BudgetPlan(**overview["hours"]), overview["methods"][0]["title"]))
        )
    if overview["sizes"] is not None:
        show_sizes(overview["sizes"])
    show_rounds(overview)
    show_price(overview)
    costs = ((m["method"], m["lanes"], m["ratio"]) for m in overview["lanes"] or ())
    if (lanes := format_lane_costs(costs)) is not None:
        out.print(escape_text(lanes))
    for line in (*describe_groups(overview), *describe_promise(overview)):
        out.print(escape_text(line))
    if overview["estimate"]:
        show_estimate(overview["estimate"])
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


def show_rounds(overview: dict[str, Any]) -> None:
    """Print what a replicate is, and after how many of them the results are analysed."""
    looks, keep = overview["looks"], " and ".join(str(n) for n in overview["keep"])
    race = ""
    if overview["rungs"]:
        rungs = " and ".join(str(r) for r in overview["rungs"])
        race = f", race on validation to step {rungs}, {keep} go on"
    out.print(
        f"a replicate of a method: one seed, {plural(overview['settings'], 'setting')}{race}; the "
        "best one is scored on test"
    )
    if len(looks) == 1:
        out.print(f"{plural(looks[0], 'replicate')} of each method, analysed once")
        return
    counts = f"{', '.join(str(n) for n in looks[:-1])} and {looks[-1]}"
    out.print(
        f"the results are analysed after {counts} replicates; a contender stops once its verdict "
        "is reached or out of reach"
    )
    if overview["most_in_lanes"] is not None:
        out.print(
            f"up to {overview['most_in_lanes']} replicates, if the cost probe finds that lanes are "
            "nearly free on this GPU"
        )


def show_price(overview: dict[str, Any]) -> None:
    """Print the work at the first look, as expected and at most: runs, and minutes if timed."""
    prices, timed = overview["price"], overview["estimate"] is not None
    names = {"first": "first look", "expected": "expected", "most": "at most"}
    rows = []
    for key, name in names.items():
        if key in prices and (key != "expected" or len(overview["looks"]) > 1):
            p = prices[key]
            cells = [f"{p['replicates']:.2g}", f"{p['control_replicates']:.2g}", f"{p['runs']:.0f}"]
            rows.append((name, *cells, *([f"{p['seconds'] / 60:.1f}"] if timed else [])))
    if len(overview["looks"]) == 1:
        rows = [("in all", *rows[-1][1:])]
    minutes = ("minutes",) if timed else ()
    show_table(("work", "<replicates", "of the control", "full runs", *minutes), rows)
    out.print(
        f"at most {overview['trials']} trials and {overview['steps_raced']:,} steps, "
        f"{len(overview['methods'])} cost probes"
    )


def describe_groups(overview: dict[str, Any]) -> list[str]:
    """Return a sentence on what the groups of test items are worth, if there are any."""
    groups, items = overview["groups"], overview["n_items"]["test"]
    if groups is None:
        return []
    worth = items / groups["design_effect"]
    return [
        f"the {items:,} test items come in {groups['n']:,} groups by {groups['source']}: they tell "
        f"about as much as {worth:,.0f} independent ones"
    ]


def describe_promise(overview: dict[str, Any]) -> list[str]:
    """Return sentences on what the study can show; an empty list if no noise is published."""
    promised = overview["promise"]
    if promised is None:
        return []
    items, margin = overview["n_items"]["test"], 100 * overview["margin"]
    looks = ("first", "last") if len(overview["looks"]) > 1 else ("last",)
    lines = [
        f"after {plural(promised[k]['replicates'], 'replicate')}: intervals of about "
        f"±{_points(promised[k]['half_width'])} points; a true difference of "
        f"{_points(promised[k]['detectable'])} points would be found in 80 % of such studies "
        f"(margin: {margin:g})"
        for k in looks
    ]
    lines.append(
        f"no number of seeds narrows an interval below ±{_points(promised['floor'])} points at "
        f"{items:,} items"
    )
    lines.append(_describe_equivalence(promised, items, margin))
    return lines


def _describe_equivalence(promised: dict[str, Any], items: int, margin: float) -> str:
    """Return whether the study can call a contender equivalent, and how many items that takes."""
    needed = promised["equivalence_items"]
    takes = (
        "no number of items does, as seeds differ too much"
        if needed is None
        else f"about {float(f'{needed:.2g}'):,.0f} items do in 80 % of such studies"
    )
    subject = f"{items:,} items"
    if promised["equivalence_power"] < RARE:
        last = plural(promised["last"]["replicates"], "replicate")
        possible = promised["equivalence_possible"]
        subject, end = (f"{subject} and {last}", "") if possible else (subject, NO_SEEDS)
        return (
            f"{subject} cannot show that a method is equivalent within {margin:g} points{end}; "
            f"{takes}"
        )
    text = (
        f"a method that truly equals the control is called equivalent within {margin:g} points in "
        f"{100 * promised['equivalence_power']:.0f} % of such studies"
    )
    return text if needed == items else f"{text}; {takes}"


def _points(value: float) -> str:
    return f"{100 * value:.1f}" if value < 1 else "100"


def show_estimate(found: dict[str, Any]) -> None:
    """Print the longest time with its range and by phase, peak memory and disk space."""
    minutes = {k: found[k] / 60 for k in ("seconds", "low", "high", "in_full_seconds")}
    out.print(
        f"at most about {minutes['seconds']:.1f} minutes ({minutes['low']:.1f} to "
        f"{minutes['high']:.1f}); {minutes['in_full_seconds']:.1f} without racing"
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
