"""``bakeoff doctor``: check this machine, or check and repair a study folder."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from bakeoff.cli.display.output import JSON_OPTION, find_study_folder, show_json, show_table
from bakeoff.core.errors import UsageError

WAL_RESET = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
"""The first SQLite versions without the WAL-reset bug: two backports, then all newer versions."""
GIB = 2**30


class MachineCheck(NamedTuple):
    """The result of one check of this machine."""

    what: str
    state: str
    detail: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(command)


def command(
    study: Path | None = typer.Argument(None, help="Study folder; default: check this machine."),
    repair: bool = typer.Option(
        False,
        "--repair",
        help="Restore missing results from trial folders and delete incomplete files.",
    ),
    mend: bool = typer.Option(False, "--mend", hidden=True, help="The old name of --repair."),
    deep: bool = typer.Option(
        False,
        "--deep",
        help="Also train on shuffled answers: a loss below chance shows that the model sees them.",
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Check this machine, or check the database, trials and data of a study."""
    from bakeoff import api

    repair = repair or mend
    if study is not None:
        folder = find_study_folder(study)
        findings = api.diagnose(folder, repair)
        if deep:
            findings.append(api.check_shuffled_answers(folder))
        _show_study(folder, findings, as_json)
        return
    if repair or deep:
        option = "--repair" if repair else "--deep"
        raise UsageError(
            "no-study-given", f"{option} needs a study.", f"`bakeoff doctor runs/mine {option}`."
        )
    machine = api.machine()
    checks = [*_check_device(machine), _check_sqlite(), _check_disk()]
    if as_json:
        show_json({"machine": machine, "findings": [c._asdict() for c in checks]})
        return
    show_table(("check", "<state", "detail"), checks)
    if any(c.state == "bad" for c in checks):
        raise typer.Exit(6)


def _show_study(folder: Path, findings: Sequence[Any], as_json: bool) -> None:
    """Print the findings in a study folder; exit with 6 if one of them is bad."""
    if as_json:
        show_json({"folder": str(folder), "findings": [f._asdict() for f in findings]})
    else:
        show_table(("check", "<state", "detail"), [(f.what, f.state, f.detail) for f in findings])
    if any(f.state == "bad" for f in findings):
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
        MachineCheck(
            "bf16 speed-up", "ok" if gain > 1 else "note", f"{gain:.1f} times fp32 in a matmul"
        ),
        *(
            MachineCheck(f"engine.{name}", "on" if found["on"] else "off", f"auto: {found['why']}")
            for name, found in machine["engine"].items()
        ),
    ]


def _check_sqlite() -> MachineCheck:
    version = sqlite3.sqlite_version
    if _has_wal_reset_fix(sqlite3.sqlite_version_info):
        return MachineCheck("sqlite", "ok", version)
    detail = f"{version}: has the WAL-reset bug, which needs two writers; a study has one"
    return MachineCheck("sqlite", "note", detail)


def _has_wal_reset_fix(version: tuple[int, ...]) -> bool:
    """Return whether this SQLite version has the fix of the WAL-reset bug (sqlite.org/wal.html)."""
    *lines, newest = WAL_RESET
    return version >= newest or any(version[:2] == v[:2] and version >= v for v in lines)


def _check_disk() -> MachineCheck:
    free = shutil.disk_usage(Path.cwd()).free
    return MachineCheck(
        "disk", "ok" if free > GIB else "bad", f"{free / GIB:.1f} GiB free in this folder"
    )
