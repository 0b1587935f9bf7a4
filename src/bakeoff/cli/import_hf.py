"""``bakeoff import-hf``: a study folder of Hugging Face's ``method_comparison`` results."""

from __future__ import annotations

from pathlib import Path

import typer

from bakeoff.cli.display import verdict
from bakeoff.cli.display.output import JSON_OPTION, RUNS, err, escape_text, show_json


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("import-hf")(command)


def command(
    results: Path = typer.Argument(help="A folder of result files, such as MetaMathQA/results."),
    out: Path | None = typer.Option(None, help="Study folder; default runs/<benchmark>-results."),
    control: str | None = typer.Option(None, help="Experiment that the others are compared with."),
    margin: float | None = typer.Option(None, help="Smallest difference that matters; 0.02."),
    test_items: int | None = typer.Option(
        None, min=1, help="Test items behind an accuracy, where it is not GSM8K's 1,319."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Read results of PEFT's method_comparison into a study, and print the verdict."""
    from bakeoff.integrations.exchange import Wishes, import_results

    whole = results.resolve()
    folder = out or RUNS / f"{whole.parent.name}-{whole.name}"
    report = import_results(results, folder, Wishes(folder.name, control, margin, test_items))
    if as_json:
        show_json(report)
    else:
        verdict.show(report, folder)
    err.print(escape_text(f"Report: {folder / 'report.html'}"))
