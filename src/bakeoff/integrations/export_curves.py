"""Export the curves of a study's trials to a tracking tool."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from bakeoff.core import plugins
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, UsageError, first_line
from bakeoff.core.names import quote_path
from bakeoff.integrations.trackers import Exporter, tracker_runs
from bakeoff.study.record import read_record


class ExportedCurves(NamedTuple):
    """The result of an export: its folder, the number of runs, the command that shows them."""

    folder: Path
    runs: int
    look: str


def export_curves(out: Path, to: str, target: Path) -> ExportedCurves:
    """Write the curves of a study's trials for a tracking tool; the study is not changed.

    ``target`` must be empty or not exist. A failed export leaves nothing in it.

    Raises:
        UsageError: ``no-study``, ``unknown-exporter``, ``folder-taken``, ``no-curves``.
        EnvironmentProblem: ``exporter-missing``, ``export-failed``.
    """
    exporter: Exporter = plugins.load_plugin("integrations.trackers", to, "exporter").EXPORTER
    record = read_record(out, examples=False)
    runs = tracker_runs(record.trials, record.metric.name)
    if not runs:
        raise UsageError(
            "no-curves",
            f"No trial in {out} has a curve or a score yet.",
            f"`bakeoff run {quote_path(out)}` continues the study.",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            "folder-taken",
            f"{target} already exists.",
            "another folder: `--out DIR`.",
        )
    created = [place for place in (target, *target.parents) if not place.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        exporter.write(record.name, runs, target)
    except Exception as error:
        for left in target.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for place in created:
            place.rmdir()
        if isinstance(error, BakeoffError):
            raise
        others = ", ".join(plugins.list_plugins("integrations.trackers"))
        raise EnvironmentProblem(
            "export-failed",
            f"{to} could not write the curves: {first_line(error)}",
            f"another version of {to}, or another tool: {others}.",
        ) from error
    return ExportedCurves(target, len(runs), exporter.view_command(record.name, target))
