"""``bakeoff init``: write a commented study file to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import typer

from bakeoff.cli.display.output import err, escape_text
from bakeoff.core.errors import UsageError
from bakeoff.core.names import quote_path


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(command)


def command(
    path: Path = typer.Argument(Path("study.toml"), help="The file to write."),
) -> None:
    """Write a commented study file to start from; edit three lines, then run it."""
    text = (
        files("bakeoff.study.config")
        .joinpath("templates/template.toml")
        .read_text(encoding="utf-8")
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError("file-exists", f"{path} already exists.", "another name.") from error
    command = f"bakeoff run {quote_path(path)}"
    err.print(
        escape_text(f"Wrote {path}. Edit model, train and columns, then `{command}`."),
        soft_wrap=True,
    )
