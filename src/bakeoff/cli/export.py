"""``bakeoff export``: write a method's weights for a server and evaluate the written files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from bakeoff.cli.display.output import (
    JSON_OPTION,
    err,
    escape_text,
    find_study_folder,
    out,
    show_json,
)
from bakeoff.core.format import format_cell


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    method: str | None = typer.Option(None, help="Method to export; default: the recommended one."),
    form: str = typer.Option(
        "adapter", "--as", help="adapter (the saved files), merged (a whole model), or lora."
    ),
    rank: int = typer.Option(16, min=1, help="Rank of the LoRA adapter, for --as lora."),
    target: Path | None = typer.Option(
        None, "--out", help="A new folder; default: STUDY/export/METHOD-FORM."
    ),
    force: bool = typer.Option(
        False, "--force", help="Export even if the scores differ from training."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write a method's weights (its best seed on validation) and evaluate the written files."""
    from bakeoff.integrations import export_weights

    folder = find_study_folder(study)
    where = target or folder / "export" / f"{method or 'recommended'}-{form}"
    made = export_weights.export_weights(folder, where, method, form, rank, force)
    if as_json:
        show_json(asdict(made))
        return
    scale, shape = (100.0, ".1f") if made.unit == "fraction" else (1.0, ".4g")
    metric = made.metric + (" %" if made.unit == "fraction" else "")
    out.print(
        escape_text(f"{made.title}, seed {made.seed}, as {made.form}: {made.folder}"),
        soft_wrap=True,
    )
    out.print(
        f"validation loss {made.loss:.4g} (at the end of training {made.trained_loss:.4g}); "
        f"{escape_text(metric)} {format_cell(made.score, shape, scale)} (in the study "
        f"{format_cell(made.trained_score, shape, scale)}), {made.differing} of {made.n_items} "
        "test items scored differently",
        soft_wrap=True,
    )
    if made.note:
        err.print(escape_text(made.note), soft_wrap=True)
    if made.serve:
        err.print(escape_text(f"Serve it: {made.serve}"), soft_wrap=True)
    if made.not_served:
        err.print(escape_text(made.not_served), soft_wrap=True)
