"""``bakeoff import-hf``: import results of PEFT's ``method_comparison`` as a study."""

from __future__ import annotations

from pathlib import Path

import typer

from bakeoff.cli.display import verdict
from bakeoff.cli.display.output import JSON_OPTION, RUNS, err, escape_text, show_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import-hf")(command)


def command(
    results: Path = typer.Argument(help="Folder of result files, such as MetaMathQA/results."),
    out: Path | None = typer.Option(None, help="Study folder; default: runs/BENCHMARK-results."),
    control: str | None = typer.Option(None, help="Experiment that the others are compared with."),
    margin: float | None = typer.Option(
        None, help="Smallest difference that matters; default: 0.02."
    ),
    test_items: int | None = typer.Option(
        None, min=1, help="Number of test items behind an accuracy; default: GSM8K's 1,319."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Import results of PEFT's method_comparison as a study and print the verdict."""
    from bakeoff.integrations.peft_benchmark.importing import ImportOptions, import_results

    whole = results.resolve()
    folder = out or RUNS / f"{whole.parent.name}-{whole.name}"
    report = import_results(
        results, folder, ImportOptions(folder.name, control, margin, test_items)
    )
    if as_json:
        show_json(report)
    else:
        verdict.show(report, folder)
    err.print(escape_text(f"Report: {folder / 'report.html'}"), soft_wrap=True)
