"""Export to a Trackio project, as ``trackio.import_csv`` would write it, with the settings.

``trackio.init`` is not used: it starts servers and takes time for each run.
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
from bakeoff.core.names import quote_path
from bakeoff.integrations.trackers import TrackerRun, import_tool


class Trackio:
    """An exporter that writes through Trackio's storage."""

    def write(self, study: str, runs: Sequence[TrackerRun], folder: Path) -> None:
        """Write every run into a project with the study's name.

        Raises:
            EnvironmentProblem: ``exporter-missing``, or ``trackio-loaded``: Trackio reads its
                folder only when it is imported.
        """
        if "trackio" in sys.modules:
            raise EnvironmentProblem(
                "trackio-loaded",
                "trackio is already imported in this process and would write to another folder.",
                "`bakeoff export-curves STUDY --to trackio`, which runs in its own process.",
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

    def view_command(self, study: str, folder: Path) -> str:
        """Return the command that shows the project."""
        return f"TRACKIO_DIR={quote_path(folder)} trackio show --project {_project(study)}"


def _project(study: str) -> str:
    """Return a project name without the characters that Trackio drops."""
    return re.sub(r"[^A-Za-z0-9_-]", "", study) or "default"


EXPORTER = Trackio()
