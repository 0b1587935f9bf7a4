"""``bakeoff compare``: print the differences of two studies and whether their verdicts agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from bakeoff.cli.display.output import (
    JSON_OPTION,
    err,
    escape_text,
    find_study_folder,
    out,
    show_json,
    show_table,
)
from bakeoff.core.format import format_cell

MAX_VALUE_LENGTH = 40
"""Characters of a value in the table; ``--json`` does not truncate."""
SIDES = ("first", "second")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(command)


def command(
    first: Path = typer.Argument(help="Study folder, or its name under runs/."),
    second: Path = typer.Argument(help="The study to compare with it."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show what differs between two studies and whether their verdicts agree."""
    from bakeoff import api

    found = api.compare(find_study_folder(first), find_study_folder(second))
    if as_json:
        show_json(found)
        return
    names = _study_labels(found["studies"])
    _show_differences(found["differences"], names)
    columns = [c for n in names for c in (f"<{n}", "difference (95 % interval)")]
    rows = [_comparison_cells(method, found["studies"]) for method in found["methods"]]
    show_table(("method", *columns, "<verdicts"), rows)
    for caution in found["cautions"]:
        err.print(f"[yellow]caution:[/] {escape_text(caution)}")


def _show_differences(differences: list[dict[str, Any]], names: list[str]) -> None:
    if differences:
        rows = [
            (d["what"], d["key"], *(_format_setting(d[side]) for side in SIDES))
            for d in differences
        ]
        show_table(("differs", "<", *(f"<{name}" for name in names)), rows)
    else:
        out.print("The two studies differ only in their names.")
    out.print()


def _study_labels(studies: list[dict[str, Any]]) -> list[str]:
    """Return the studies' names, or their folders if both have the same name."""
    names = [s["name"] for s in studies]
    return names if names[0] != names[1] else [s["folder"] for s in studies]


def _comparison_cells(method: dict[str, Any], studies: list[dict[str, Any]]) -> tuple[str, ...]:
    cells: list[str] = []
    for side, study in zip(SIDES, studies, strict=True):
        known = method[side] or {"verdict": "-", "difference": None}
        cells += [known["verdict"], _format_difference(known["difference"], study["unit"])]
    return (method["title"], *cells, method["agreement"].replace("_", " "))


def _format_difference(difference: dict[str, Any] | None, unit: str) -> str:
    if difference is None:
        return "-"
    scale, form = (100.0, "+.1f") if unit == "fraction" else (1.0, "+.4g")
    estimate, low, high = (
        format_cell(difference[k], form, scale) for k in ("estimate", "low", "high")
    )
    return estimate if difference["low"] is None else f"{estimate} ({low} to {high})"


def _format_setting(value: Any) -> str:
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 1]}…"
