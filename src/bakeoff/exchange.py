"""Studies from and for Hugging Face's ``method_comparison``: what the CLI calls beside ``api``.

Stands above ``api``: result files become a study folder that its ``report`` reads, and a study's
final trials become result files. What either means is in ``hf``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeoff import api
from bakeoff import folder as study_folder
from bakeoff.errors import UsageError
from bakeoff.hf import exporting, importing
from bakeoff.hf.importing import Wishes
from bakeoff.lock import locked
from bakeoff.store import Writer

__all__ = ["Wishes", "import_results", "write_results"]


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
    return api.report(out)


def write_results(out: Path, target: Path) -> list[str]:
    """Write each final trial of a study as ``method_comparison`` would; return the files' names.

    Raises:
        UsageError: ``no-study``, ``hf-json-imported``, ``hf-json-nothing``.
    """
    found = exporting.files(api.read_record(out), out)
    exporting.write(found, target)
    return list(found)
