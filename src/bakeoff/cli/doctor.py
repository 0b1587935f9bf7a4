"""``bakeoff doctor``: can this machine run a study, and how fast; and is a study's folder whole?"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from bakeoff.cli.display.output import (JSON_OPTION, show_json, show_table, find_study_folder)
from bakeoff.core.errors import UsageError

WAL_RESET = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
"""The first versions without SQLite's WAL-reset bug: of two older lines, and of all later ones."""
GIB = 2**30


class MachineCheck(NamedTuple):
    """One thing looked at."""

    what: str
    state: str
    detail: str


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(command)


def command(
    study: Path | None = typer.Argument(None, help="A study folder; without one: this machine."),
    mend: bool = typer.Option(
        False, "--mend", help="Take lost results from their folders, remove what was torn."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a study's database, trials and data; without a study: what one would find here."""
    from bakeoff import api

    if study is not None:
        folder = find_study_folder(study)
        _show_study(folder, api.diagnose(folder, mend), as_json)
        return
    if mend:
        raise UsageError(
            "no-study-given", "--mend needs a study.", "`bakeoff doctor runs/mine --mend`."
        )
    machine = api.machine()
    found = [*_check_device(machine), _check_sqlite(), _check_disk()]
    if as_json:
        show_json({"machine": machine, "findings": [f._asdict() for f in found]})
        return
    show_table(("check", "<state", "detail"), found)
    if any(f.state == "bad" for f in found):
        raise typer.Exit(6)


def _show_study(folder: Path, found: Sequence[Any], as_json: bool) -> None:
    """Print what was found in a study folder; exit with 6 where something bad was left."""
    if as_json:
        show_json({"folder": str(folder), "findings": [f._asdict() for f in found]})
    else:
        show_table(("check", "<state", "detail"), [(f.what, f.state, f.detail) for f in found])
    if any(f.state == "bad" for f in found):
        raise typer.Exit(6)


def _check_device(machine: dict[str, Any]) -> list[MachineCheck]:
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    speed = machine["matmul_gflops"]
    rates = ", ".join(f"{k} {v:,.0f} GFLOP/s" for k, v in speed.items())
    gain = speed["bf16"] / speed["fp32"]
    return [
        MachineCheck("versions", "ok", versions),
        MachineCheck("device", "ok", f"{machine['device']}: {machine['hardware']}"),
        MachineCheck("threads", "ok", str(machine["threads"])),
        MachineCheck("precision", "ok", f"auto = {machine['precision']} (measured: {rates})"),
        MachineCheck("bf16 pays", "ok" if gain > 1 else "note", f"{gain:.1f} times fp32 in a matmul"),
        *(
            MachineCheck(f"engine.{name}", "on" if found["on"] else "off", f"auto: {found['why']}")
            for name, found in machine["engine"].items()
        ),
    ]


def _check_sqlite() -> MachineCheck:
    version = sqlite3.sqlite_version
    if _has_wal_reset_fix(sqlite3.sqlite_version_info):
        return MachineCheck("sqlite", "ok", version)
    detail = f"{version}: has the WAL-reset bug; safe here, a study has one writer"
    return MachineCheck("sqlite", "note", detail)


def _has_wal_reset_fix(version: tuple[int, ...]) -> bool:
    """Tell whether a version of SQLite cannot lose what two writers wrote (its wal.html)."""
    *lines, newest = WAL_RESET
    return version >= newest or any(version[:2] == v[:2] and version >= v for v in lines)


def _check_disk() -> MachineCheck:
    free = shutil.disk_usage(Path.cwd()).free
    return MachineCheck("disk", "ok" if free > GIB else "bad", f"{free / GIB:.1f} GiB free here")
