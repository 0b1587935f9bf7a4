"""Exporters of curves to tracking tools; each tool is one file with its ``EXPORTER``.

An exporter gets runs and an empty folder, writes only into that folder and imports its tool when it
writes. Nothing leaves the machine.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.redact import redact_value
from bakeoff.core.results import CurvePoint, TrialResult
from bakeoff.core.trial import Trial

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
