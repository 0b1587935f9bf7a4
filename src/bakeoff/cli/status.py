"""``bakeoff status``: how far a study is, from another terminal too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

from bakeoff.cli.output import JSON_OPTION, out, plain, show_json, show_table, study_folder


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("status")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: the newest in runs/."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show what a study has done so far, and what is left of what is planned."""
    from bakeoff import api

    folder = study_folder(study)
    record = api.read_record(folder)
    rows = []
    for phase in ("search", "final"):
        for method in record.methods:
            mine = [r for t, r in record.trials if t.phase == phase and t.method.name == method]
            if mine:
                counts = Counter(r.status.value if r else "missing" for r in mine)
                rows.append({"phase": phase, "method": method, "trials": len(mine), **counts})
    done, planned = sum(r is not None for _, r in record.trials), len(record.trials)
    if as_json:
        show_json({"folder": str(folder), "done": done, "planned": planned, "rows": rows})
        return
    out.print(plain(f"{folder}: {done} of {planned} planned trials, {len(record.costs)} costs"))
    states = sorted({k for r in rows for k in r} - {"phase", "method", "trials"})
    show_table(
        ("phase", "<method", "trials", *states),
        [tuple(str(r.get(k, 0)) for k in ("phase", "method", "trials", *states)) for r in rows],
    )
