"""``bakeoff report``: write the report of a study again and print the verdict.

``--format`` writes the report in one format instead: Markdown, JSON or HTML to stdout or a file,
CSV to a folder of tables or one table to stdout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from bakeoff.cli.display import verdict
from bakeoff.cli.display.output import (
    JSON_OPTION,
    VERBOSE_OPTION,
    err,
    escape_text,
    find_study_folder,
    show_document,
    show_json,
)
from bakeoff.core.errors import UsageError, unknown_name
from bakeoff.core.redact import escape_control_chars, redact_value

FORMATS = ("md", "csv", "json", "html")
UNKNOWN_FORMAT, UNKNOWN_TABLE = "unknown-format", "unknown-table"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    form: str | None = typer.Option(None, "--format", help="Format: md, csv, json or html."),
    table: str | None = typer.Option(
        None, "--table", help="With --format csv: print only this table."
    ),
    hf_json: bool = typer.Option(
        False, "--hf-json", help="Write each final trial as a result file of method_comparison."
    ),
    out: Path | None = typer.Option(
        None, help="File for --format; folder for csv and --hf-json (default: STUDY/hf-json)."
    ),
    examples: bool = typer.Option(
        True,
        "--examples/--no-examples",
        help="Include test items and answers; leave them out if the data is private. The choice "
        "holds for this report only.",
    ),
    verbose: bool = VERBOSE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Write report.html and report.json of a study, finished or not; print the verdict."""
    from bakeoff.integrations.peft_benchmark.exporting import write_results

    _check_options(form, table, hf_json, out)
    folder = find_study_folder(study)
    if hf_json:
        target = out or folder / "hf-json"
        written = write_results(folder, target)
        show_json(written) if as_json else err.print(
            escape_text(f"{len(written)} files in {target}")
        )
        return
    from bakeoff import api

    report = api.report(folder, examples)
    if form is not None:
        write_format(report, form, out, table)
    elif as_json:
        show_json(report)
    else:
        verdict.show(report, folder, verbose=verbose)
    err.print(escape_text(f"Report: {folder / 'report.html'}"), soft_wrap=True)


def _check_options(form: str | None, table: str | None, hf_json: bool, out: Path | None) -> None:
    """Check that the options can be combined.

    Raises:
        UsageError: ``unknown-format``, ``formats-clash``, ``table-without-csv``,
            ``csv-without-out``, ``out-without-hf-json``.
    """
    if form is not None and form not in FORMATS:
        raise unknown_name(UNKNOWN_FORMAT, "format", form, FORMATS)
    if form is not None and hf_json:
        raise UsageError(
            "formats-clash", "--format and --hf-json cannot be combined.", "one of them."
        )
    if table is not None and form != "csv":
        raise UsageError(
            "table-without-csv",
            f"--table {table} needs --format csv.",
            f"`--format csv --table {table}`.",
        )
    if form == "csv" and (table is None) == (out is None):
        raise UsageError(
            "csv-without-out",
            "--format csv needs a folder for its tables, or the name of one table.",
            "`--out DIR`, or `--table NAME` for stdout.",
        )
    if out is not None and not hf_json and form is None:
        raise UsageError(
            "out-without-hf-json",
            f"--out {out} needs --format or --hf-json: report.html and report.json are always "
            "written to the study folder.",
            "`--format md` or `--hf-json`, or leave out `--out`.",
        )


def write_format(report: dict[str, Any], form: str, out: Path | None, table: str | None) -> None:
    """Write the report in one format to ``out``, or to stdout.

    Raises:
        UsageError: ``unknown-table``, with the closest name and all names.
    """
    from bakeoff import report as pages

    if form == "csv":
        _write_tables(pages.tables(report), out, table)
        return
    if form == "json" and out is None:
        show_json(report)
        return
    if form == "json":
        text = (
            escape_control_chars(json.dumps(redact_value(report), indent=1, ensure_ascii=False))
            + "\n"
        )
    else:
        text = pages.markdown(report) if form == "md" else pages.render(report)
    if out is None:
        show_document(text)
        return
    _write(out, text)


def _write_tables(tables: dict[str, str], out: Path | None, table: str | None) -> None:
    if table is not None:
        if table not in tables:
            raise unknown_name(UNKNOWN_TABLE, "table", table, tables)
        show_document(tables[table])
    if out is not None:
        for name, text in tables.items():
            _write(out / f"{name}.csv", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    err.print(escape_text(f"Written: {path}"), soft_wrap=True)
