"""``bakeoff report``: write the report again from what the study has, and print the verdict."""

from __future__ import annotations

from pathlib import Path

import typer

from bakeoff.cli import verdict
from bakeoff.cli.output import JSON_OPTION, err, show_json, study_folder


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write report.html and report.json of a study, finished or not, and print the verdict."""
    from bakeoff import api

    folder = study_folder(study)
    report = api.report(folder)
    if as_json:
        show_json(report)
    else:
        verdict.show(report)
    err.print(f"Report: {folder / 'report.html'}")
