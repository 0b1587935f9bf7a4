"""Export to TensorBoard event files: a folder per run, settings in the HParams tab; no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.names import quote_path
from bakeoff.integrations.trackers import TrackerRun, import_tool


class Tensorboard:
    """An exporter that uses TensorBoard's own writer."""

    def write(self, study: str, runs: Sequence[TrackerRun], folder: Path) -> None:
        """Write an event file for each run."""

        def tensorboard(module: str) -> Any:
            return import_tool(f"tensorboard.{module}", "tensorboard", "tensorboard")

        events = tensorboard("compat.proto.event_pb2")
        summaries = tensorboard("compat.proto.summary_pb2")
        writers = tensorboard("summary.writer.event_file_writer")
        hparams = tensorboard("plugins.hparams.summary_v2")
        for run in runs:
            writer = writers.EventFileWriter(str(folder / run.name))

            def add(summary: Any, step: int, writer: Any = writer) -> None:
                writer.add_event(events.Event(wall_time=time.time(), step=step, summary=summary))

            def scalars(values: Mapping[str, float]) -> Any:
                entry = summaries.Summary.Value
                entries = [entry(tag=k, simple_value=v) for k, v in values.items()]
                return summaries.Summary(value=entries)

            add(hparams.hparams_pb(run.parameters), 0)
            for step, values in run.points():
                add(scalars(values), step)
            if run.summary:
                add(scalars(run.summary), run.last_step)
            writer.close()

    def view_command(self, study: str, folder: Path) -> str:
        """Return the command that serves the folder."""
        return f"tensorboard --logdir {quote_path(folder)}"


EXPORTER = Tensorboard()
