"""``bakeoff demo``: run the packaged study on a real model and real data."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import typer

from bakeoff.cli.display.output import JSON_OPTION, RUNS
from bakeoff.cli.run import execute


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(command)


def command(
    out: Path = typer.Option(RUNS / "demo", help="Study folder."),
    model: str | None = typer.Option(
        None,
        help="Another source of the same model, such as sentence-transformers/all-MiniLM-L6-v2.",
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare LoRA with seven contenders on MiniLM and home-assistant intents (about 5 minutes)."""
    from bakeoff.study.config import read_spec

    with as_file(files("bakeoff.study.config") / "templates" / "demo.toml") as path:
        spec = read_spec(path)
        if model is not None:
            spec = spec.model_copy(update={"base": spec.base.model_copy(update={"model": model})})
        raise typer.Exit(execute(spec, path.parent, out, as_json))
