"""Export to an MLflow experiment in MLflow's file store; needs only ``mlflow-skinny``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.names import quote_path
from bakeoff.integrations.trackers import TrackerRun, import_tool

ALLOWED = "MLFLOW_ALLOW_FILE_STORE"
"""MLflow 3 enables its file store only if this is set; a database would need the full package."""
BATCH = 1000
"""Maximum number of metrics in one call to MLflow."""


class Mlflow:
    """An exporter that writes through MLflow's client."""

    def write(self, study: str, runs: Sequence[TrackerRun], folder: Path) -> None:
        """Write a run for each trial into an experiment with the study's name."""
        os.environ.setdefault(ALLOWED, "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

        def mlflow(module: str) -> Any:
            return import_tool(f"mlflow{module}", "mlflow-skinny", "mlflow")

        entities, now = mlflow(".entities"), int(time.time() * 1000)
        client = mlflow("").MlflowClient(tracking_uri=folder.resolve().as_uri())
        experiment = client.create_experiment(study)
        for run in runs:
            run_id = client.create_run(experiment, run_name=run.name).info.run_id
            pairs = [(k, str(v)) for k, v in run.parameters.items()]
            client.log_batch(run_id, params=[entities.Param(k, v) for k, v in pairs])
            rows = [*run.points(), (run.last_step, run.summary)]
            metrics = [
                entities.Metric(name, value, now, step)
                for step, values in rows
                for name, value in values.items()
            ]
            for start in range(0, len(metrics), BATCH):
                client.log_batch(run_id, metrics=metrics[start : start + BATCH])
            client.set_terminated(run_id)

    def view_command(self, study: str, folder: Path) -> str:
        """Return the command that serves the folder; it needs the full ``mlflow`` package."""
        return f"{ALLOWED}=true mlflow ui --backend-store-uri {quote_path(folder)}"


EXPORTER = Mlflow()
