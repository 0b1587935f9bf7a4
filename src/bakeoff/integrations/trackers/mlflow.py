"""An MLflow experiment in a folder: MLflow's file store, which its small package writes alone."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.integrations.trackers import TrialRun, import_tool

ALLOWED = "MLFLOW_ALLOW_FILE_STORE"
"""MLflow 3 wants to be asked for its file store; a database would need its large package."""
BATCH = 1000
"""Metrics that MLflow takes at once."""


class Mlflow:
    """Writes through MLflow's client."""

    def write(self, study: str, runs: Sequence[TrialRun], folder: Path) -> None:
        """Write a run for each trial into the experiment named as the study."""
        os.environ.setdefault(ALLOWED, "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

        def of(module: str) -> Any:
            return import_tool(f"mlflow{module}", "mlflow-skinny", "mlflow")

        entities, at = of(".entities"), int(time.time() * 1000)
        client = of("").MlflowClient(tracking_uri=folder.resolve().as_uri())
        experiment = client.create_experiment(study)
        for run in runs:
            made = client.create_run(experiment, run_name=run.name).info.run_id
            pairs = [(k, str(v)) for k, v in run.parameters.items()]
            client.log_batch(made, params=[entities.Param(k, v) for k, v in pairs])
            rows = [*run.points(), (run.last_step, run.summary)]
            metrics = [
                entities.Metric(name, value, at, step)
                for step, values in rows
                for name, value in values.items()
            ]
            for start in range(0, len(metrics), BATCH):
                client.log_batch(made, metrics=metrics[start : start + BATCH])
            client.set_terminated(made)

    def look(self, study: str, folder: Path) -> str:
        """Return the command that serves the folder; it wants MLflow's large package."""
        return f"{ALLOWED}=true mlflow ui --backend-store-uri '{folder}'"


EXPORTER = Mlflow()
