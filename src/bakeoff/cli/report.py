"""``bakeoff report``: write the report again from what the study has, and print the verdict."""

from __future__ import annotations

from pathlib import Path

import typer

from bakeoff.cli import verdict
from bakeoff.cli.output import JSON_OPTION, err, plain, show_json, study_folder
from bakeoff.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    hf_json: bool = typer.Option(
        False, "--hf-json", help="Write each final trial as PEFT's method_comparison would."
    ),
    out: Path | None = typer.Option(None, help="Folder for --hf-json; default <study>/hf-json."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write report.html and report.json of a study, finished or not, and print the verdict."""
    from bakeoff import api, exchange

    if out is not None and not hf_json:
        raise UsageError(
            "out-without-hf-json",
            f"--out {out} without --hf-json: report.html and report.json lie in the study folder.",
            "with `--hf-json`, or leave `--out` out.",
        )
    folder = study_folder(study)
    if hf_json:
        target = out or folder / "hf-json"
        written = exchange.write_results(folder, target)
        show_json(written) if as_json else err.print(plain(f"{len(written)} files in {target}"))
        return
    report = api.report(folder)
    if as_json:
        show_json(report)
    else:
        verdict.show(report, folder)
    err.print(plain(f"Report: {folder / 'report.html'}"))
