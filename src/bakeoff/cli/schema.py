"""``bakeoff schema``: print the JSON Schema of the study file, or of report.json."""

from __future__ import annotations

import json
from importlib.resources import files

import typer

from bakeoff.cli.display.output import show_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema")(command)


def command(
    report: bool = typer.Option(False, "--report", help="Print the schema of report.json instead."),
) -> None:
    """Print the JSON Schema of study.toml: every key with its default and meaning."""
    if report:
        text = files("bakeoff.report").joinpath("schema.json").read_text(encoding="utf-8")
        show_json(json.loads(text))
        return
    from bakeoff.study.config import StudySpec

    show_json(StudySpec.model_json_schema())
