"""A Trackio project in a folder of its own, as ``trackio.import_csv`` would write it, settings too.

No run is opened through ``trackio.init``: that starts servers and takes clock time for each.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.integrations.trackers import TrialRun, import_tool


class Trackio:
    """Writes through Trackio's storage."""

    def write(self, study: str, runs: Sequence[TrialRun], folder: Path) -> None:
        """Write every run into the project named as the study.

        Raises:
            EnvironmentProblem: ``exporter-missing``; ``trackio-loaded``: it keeps the folder that
                it saw when it was imported.
        """
        if "trackio" in sys.modules:
            raise EnvironmentProblem(
                "trackio-loaded",
                "trackio was imported by this process before: it would write elsewhere.",
                "`bakeoff export-curves STUDY --to trackio`, which runs in a process of its own.",
            )
        before = os.environ.get("TRACKIO_DIR")
        os.environ["TRACKIO_DIR"] = str(folder)
        try:
            storage: Any = import_tool("trackio.sqlite_storage", "trackio", "trackio").SQLiteStorage
        finally:
            os.environ.pop("TRACKIO_DIR")
            if before is not None:
                os.environ["TRACKIO_DIR"] = before
        now = datetime.datetime.now(datetime.UTC).isoformat()
        for run in runs:
            rows = run.points() + ([(run.last_step, run.summary)] if run.summary else [])
            storage.bulk_log(
                project=_project(study),
                run=run.name,
                metrics_list=[values for _, values in rows],
                steps=[step for step, _ in rows],
                timestamps=[now] * len(rows),
                config=run.parameters,
            )

    def look(self, study: str, folder: Path) -> str:
        """Return the command that shows the project."""
        return f"TRACKIO_DIR='{folder}' trackio show --project {_project(study)}"


def _project(study: str) -> str:
    """Return the name that Trackio keeps of a project's."""
    return re.sub(r"[^A-Za-z0-9_-]", "", study) or "default"


EXPORTER = Trackio()
