"""``bakeoff export-curves``: write a study's curves for TensorBoard, Trackio or MLflow."""

from __future__ import annotations

from pathlib import Path

import typer

from bakeoff.cli.display.output import JSON_OPTION, err, escape_text, find_study_folder, show_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export-curves")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    to: str = typer.Option(..., "--to", help="tensorboard, trackio or mlflow."),
    out: Path | None = typer.Option(None, help="An empty folder; default: STUDY/curves/TOOL."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write each trial as a run of a tracking tool: losses by step, setting, mean test score."""
    from bakeoff.integrations.export_curves import export_curves

    folder = find_study_folder(study)
    found = export_curves(folder, to, out or folder / "curves" / to)
    if as_json:
        show_json({**found._asdict(), "folder": str(found.folder)})
        return
    err.print(escape_text(f"{found.runs} runs in {found.folder}"), soft_wrap=True)
    err.print(escape_text(f"Show them with: {found.look}"), soft_wrap=True)
