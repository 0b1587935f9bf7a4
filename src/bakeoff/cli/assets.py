"""``bakeoff assets``: list and prepare packaged models and data."""

from __future__ import annotations

import dataclasses

import typer

from bakeoff.cli.display.output import JSON_OPTION, err, out, show_json, show_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("assets")(command)


def command(
    names: list[str] | None = typer.Argument(
        None, help="Assets to prepare; default: list all of them."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """List packaged models and data, or prepare some: download, verify, convert and cache."""
    from bakeoff.data import assets

    for name in names or []:
        out.print(str(assets.prepare(name, err.print)), soft_wrap=True, markup=False)
    if names:
        return
    found = [(a, assets.locate(a.name)) for a in assets.list_assets()]
    if as_json:
        show_json([dataclasses.asdict(a) | {"path": p and str(p)} for a, p in found])
        return
    show_table(
        ("name", "<kind", "<licence", "<prepared", "summary"),
        [(a.name, a.kind, a.licence, "yes" if p else "no", a.summary) for a, p in found],
    )
