"""``bakeoff plan``: what a study would run; trains nothing."""

from __future__ import annotations

from pathlib import Path

import typer

from bakeoff.cli.output import JSON_OPTION, err, out, show_json, show_table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan")(command)


def command(
    study: Path = typer.Argument(..., help="A study.toml."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a study and print the trials it would run."""
    from bakeoff import api
    from bakeoff.cli.live import Live
    from bakeoff.spec import read_spec

    spec = read_spec(study)
    with Live(err) as live:
        overview = api.overview(spec, study.parent, live)
    if as_json:
        show_json(overview)
        return
    counts = overview["n_items"]
    out.print(
        f"{overview['name']}: {counts['train']} train, {counts['validation']} validation, "
        f"{counts['test']} test items; {overview['precision']} on {overview['device']}"
    )
    show_table(
        ("method", "search trials", "final trials", "steps", "learning rates"),
        [
            (
                m["title"],
                str(m["search_trials"]),
                str(m["final_trials"]),
                f"{m['steps']:,}",
                ", ".join(f"{r:g}" for r in m["learning_rates"]),
            )
            for m in overview["methods"]
        ],
    )
    if overview["sizes"] is not None:
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
                for s in overview["sizes"]
            ],
        )
    out.print(
        f"{overview['trials']} trials, {overview['steps']:,} steps, "
        f"{len(overview['methods'])} cost probes"
    )
