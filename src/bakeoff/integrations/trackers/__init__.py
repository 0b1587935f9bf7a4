"""Export a study's curves to tracking tools; each tool is one file with its ``EXPORTER``.

An exporter gets runs and an empty folder, writes only into that folder and imports its tool when it
writes. Nothing leaves the machine.
"""

from __future__ import annotations

import importlib
import math
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from bakeoff.core import plugins
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, UsageError, first_line
from bakeoff.core.redact import redact_value
from bakeoff.core.results import CurvePoint, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.study.record import read_record

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_MAX_NAME = 100
"""Maximum length of one part of a run's name, which becomes the name of a folder."""


@dataclass(frozen=True)
class TrackerRun:
    """A trial as a run of a tracking tool.

    ``name`` is ``method/setting/seed``, safe as a path. ``curve`` holds the losses by step, in
    nats. ``parameters`` holds the hyperparameter setting and the trial's other attributes.
    ``summary`` holds the means at the end, with ``test_<metric>`` for a final trial with a score.
    """

    name: str
    parameters: dict[str, str | int | float | bool]
    curve: tuple[CurvePoint, ...]
    summary: dict[str, float]

    @property
    def last_step(self) -> int:
        """The step of the last point, at which the summary is logged."""
        return self.curve[-1].step if self.curve else 0

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Return the finite losses by step: ``train_loss`` and ``validation_loss``."""
        points = []
        for point in self.curve:
            both = {"train_loss": point.train_loss, "validation_loss": point.validation_loss}
            known = {k: v for k, v in both.items() if v is not None and math.isfinite(v)}
            if known:
                points.append((point.step, known))
        return points


class Exporter(Protocol):
    """A writer of runs in the format of one tool."""

    def write(self, study: str, runs: Sequence[TrackerRun], folder: Path) -> None:
        """Write all runs of a study into an empty folder.

        Raises:
            EnvironmentProblem: ``exporter-missing``.
        """

    def view_command(self, study: str, folder: Path) -> str:
        """Return the command that shows the exported runs."""


def tracker_runs(
    trials: Iterable[tuple[Trial, TrialResult | None]], metric: str
) -> tuple[TrackerRun, ...]:
    """Return every trial that has a curve or a score, in order; equal names get the trial's id."""
    runs: dict[str, TrackerRun] = {}
    for trial, result in trials:
        if result is None or not (result.curve or result.splits):
            continue
        setting = redact_value(trial.setting)
        setting_text = ",".join(f"{k}={_short_value(v)}" for k, v in sorted(setting.items()))
        parts = (trial.method.name, setting_text, f"seed={trial.seed}")
        name = "/".join(_UNSAFE.sub("_", part)[:_MAX_NAME] for part in parts)
        if name in runs:
            name = f"{name},{trial.id}"
        parameters: dict[str, Any] = {k: _plain_value(v) for k, v in setting.items()}
        parameters |= {
            "method": trial.method.name, "seed": trial.seed, "phase": trial.phase,
            "trial_id": trial.id, "status": result.status.value,
        }  # fmt: skip
        means = {}
        for split, scored in result.splits.items():
            if scored.scores and math.isfinite(mean := math.fsum(scored.scores)):
                means[f"{split}_{_UNSAFE.sub('_', metric)}"] = mean / len(scored.scores)
        runs[name] = TrackerRun(name, parameters, result.curve, means)
    return tuple(runs.values())


def import_tool(module: str, package: str, extra: str) -> ModuleType:
    """Import the module of a tracking tool.

    Raises:
        EnvironmentProblem: ``exporter-missing``, with the command for pip.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentProblem(
            "exporter-missing",
            f"{package} cannot be imported here: {error}.",
            f"`pip install 'bakeoff[{extra}]'` (or `pip install {package}`).",
        ) from error


def _short_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain_value(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)


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
            "`bakeoff run` to continue the study.",
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
