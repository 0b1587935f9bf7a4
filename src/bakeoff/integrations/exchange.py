"""Studies from and for other tools: what the CLI calls beside ``api``.

Stands above ``api``: result files of Hugging Face's ``method_comparison`` become a study folder
that its ``report`` reads, and a study's final trials become result files; what either means is in
``hf``. Curves go to tracking tools through ``exporters``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import plugins
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, UsageError, first_line
from bakeoff.integrations.peft_benchmark import exporting, importing
from bakeoff.integrations.peft_benchmark.importing import Wishes
from bakeoff.integrations.trackers import Exporter, runs_of
from bakeoff.report import write
from bakeoff.study.record import read_record
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Writer
from bakeoff.study.storage.lock import locked

__all__ = ["Exported", "Wishes", "export_curves", "import_results", "write_results"]


class Exported(NamedTuple):
    """What was exported: where it lies, how many runs, and the command that shows them."""

    folder: Path
    runs: int
    look: str


def import_results(results: Path, out: Path, wishes: Wishes) -> dict[str, Any]:
    """Make a study folder of Hugging Face's ``method_comparison`` results; return its report.

    Raises:
        UsageError: ``folder-taken``, and what ``importing.make`` raises.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError("folder-taken", f"{out} is there already.", "another one: `--out DIR`.")
    made = importing.make(results, wishes)
    study_folder.make(out)
    with locked(out), Writer(out / study_folder.DATABASE) as store:
        store.plan([trial for trial, _ in made.trials])
        for _, result in made.trials:
            store.keep(result)
        for cost in made.costs:
            store.keep_cost(cost)
        store.set_all(made.values)
    return write.report(out)


def write_results(out: Path, target: Path) -> list[str]:
    """Write each final trial of a study as ``method_comparison`` would; return the files' names.

    Raises:
        UsageError: ``no-study``, ``hf-json-imported``, ``hf-json-nothing``.
    """
    found = exporting.files(read_record(out, examples=False), out)
    exporting.write(found, target)
    return list(found)


def export_curves(out: Path, to: str, target: Path) -> Exported:
    """Write the curves of a study's trials for a tracking tool; the study is only read.

    ``target`` must be empty or not there; where the export fails, nothing is left of it.

    Raises:
        UsageError: ``no-study``, ``unknown-exporter``, ``folder-taken``, ``no-curves``.
        EnvironmentProblem: ``exporter-missing``, ``export-failed``.
    """
    exporter: Exporter = plugins.load_plugin("integrations.trackers", to, "exporter").EXPORTER
    record = read_record(out, examples=False)
    runs = runs_of(record.trials, record.metric.name)
    if not runs:
        raise UsageError(
            "no-curves", f"No trial in {out} has a curve or a score yet.", "`bakeoff run` goes on."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            "folder-taken", f"{target} is there already.", "another folder: `--out DIR`."
        )
    made = [place for place in (target, *target.parents) if not place.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        exporter.write(record.name, runs, target)
    except Exception as error:
        for left in target.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for place in made:
            place.rmdir()
        if isinstance(error, BakeoffError):
            raise
        others = ", ".join(plugins.list_plugins("integrations.trackers"))
        raise EnvironmentProblem(
            "export-failed",
            f"{to} could not write the curves: {first_line(error)}",
            f"another version of it, or another tool: {others}.",
        ) from error
    return Exported(target, len(runs), exporter.look(record.name, target))
