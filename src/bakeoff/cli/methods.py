"""``bakeoff methods``: the catalog as a table, or one method's page."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

import typer

from bakeoff.cli.output import JSON_OPTION, out, show_json, show_table

SHOWN_RATES = 5


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("methods")(command)


def command(
    name: str | None = typer.Argument(None, help="One method's page."),
    toml: bool = typer.Option(False, "--toml", help="Print the method's TOML file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the methods that can compete, or show one."""
    from bakeoff.methods import registry
    from bakeoff.plan import learning_rates

    if name is None:
        entries = [registry.load(n, Path()) for n in registry.names()]
        if as_json:
            show_json([dataclasses.asdict(e) for e in entries])
            return
        show_table(
            ("name", "<title", "<family", "lr prior", "mechanism"),
            [(e.name, e.title, e.family, f"{e.learning_rate:g}", e.mechanism) for e in entries],
        )
        return
    entry = registry.load(name, Path())
    if toml:
        source = files("bakeoff.methods.catalog").joinpath(f"{name}.toml")
        typer.echo(source.read_text(encoding="utf-8"), nl=False)
    elif as_json:
        show_json(dataclasses.asdict(entry))
    else:
        rates = ", ".join(f"{r:g}" for r in learning_rates(entry.learning_rate, SHOWN_RATES))
        out.print(f"[bold]{entry.title}[/] ({entry.name}), {entry.family}")
        out.print(f"  {entry.mechanism}", markup=False)
        out.print(f"  paper           {entry.paper or '-'}", markup=False)
        out.print(f"  how             {entry.peft or 'hook ' + str(entry.hook)}", markup=False)
        out.print(f"  arguments       {entry.config or '-'}", markup=False)
        out.print(f"  learning rates  {rates}", markup=False)
        out.print(f"                  {entry.learning_rate_why}", markup=False)
