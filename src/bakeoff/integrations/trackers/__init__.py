"""Exporters: a study's curves in the format of a tracking tool. One file each, ``EXPORTER`` in it.

Called by ``exchange`` with the trials of a record and an empty folder. An exporter writes into that
folder alone, knows nothing of studies, and imports its tool when it writes: ``needed`` says what to
install where that is missing. Nothing leaves the machine.
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
from bakeoff.core import plugins
from bakeoff.core.errors import BakeoffError
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.errors import UsageError
from bakeoff.core.errors import first_line
from bakeoff.study.record import read_record
from pathlib import Path
from typing import NamedTuple
import shutil

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_MAX_NAME = 100
"""Characters of a part of a run's name: it becomes the name of a folder."""


@dataclass(frozen=True)
class TrialRun:
    """A trial as tracking tools know runs.

    ``name`` is ``method/setting/seed``, safe as a path. ``curve`` holds the losses by step, in
    nats; ``parameters`` the setting and what else tells trials apart; ``summary`` the means at the
    end, ``test_<metric>`` among them for a final trial that was scored.
    """

    name: str
    parameters: dict[str, str | int | float | bool]
    curve: tuple[CurvePoint, ...]
    summary: dict[str, float]

    @property
    def last_step(self) -> int:
        """The step of the last point, where the summary stands."""
        return self.curve[-1].step if self.curve else 0

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Return the losses that are numbers, by step: ``train_loss``, ``validation_loss``."""
        found = []
        for point in self.curve:
            both = {"train_loss": point.train_loss, "validation_loss": point.validation_loss}
            known = {k: v for k, v in both.items() if v is not None and math.isfinite(v)}
            if known:
                found.append((point.step, known))
        return found


class Exporter(Protocol):
    """Writes runs as one tool reads them."""

    def write(self, study: str, runs: Sequence[TrialRun], folder: Path) -> None:
        """Write all runs of a study into an empty folder.

        Raises:
            EnvironmentProblem: ``exporter-missing``.
        """

    def look(self, study: str, folder: Path) -> str:
        """Return the command that shows what was written."""


def tracker_runs(
    trials: Iterable[tuple[Trial, TrialResult | None]], metric: str
) -> tuple[TrialRun, ...]:
    """Return every trial that has a curve or a score, in order; equal names get the trial's id."""
    found: dict[str, TrialRun] = {}
    for trial, result in trials:
        if result is None or not (result.curve or result.splits):
            continue
        setting = redact_value(trial.setting)
        said = ",".join(f"{k}={_short_value(v)}" for k, v in sorted(setting.items()))
        parts = (trial.method.name, said, f"seed={trial.seed}")
        name = "/".join(_UNSAFE.sub("_", part)[:_MAX_NAME] for part in parts)
        if name in found:
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
        found[name] = TrialRun(name, parameters, result.curve, means)
    return tuple(found.values())


def import_tool(module: str, package: str, extra: str) -> ModuleType:
    """Import a tool.

    Raises:
        EnvironmentProblem: ``exporter-missing``, with the line for pip.
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
    """What was exported: where it lies, how many runs, and the command that shows them."""

    folder: Path
    runs: int
    look: str


def export_curves(out: Path, to: str, target: Path) -> ExportedCurves:
    """Write the curves of a study's trials for a tracking tool; the study is only read.

    ``target`` must be empty or not there; where the export fails, nothing is left of it.

    Raises:
        UsageError: ``no-study``, ``unknown-exporter``, ``folder-taken``, ``no-curves``.
        EnvironmentProblem: ``exporter-missing``, ``export-failed``.
    """
    exporter: Exporter = plugins.load_plugin("integrations.trackers", to, "exporter").EXPORTER
    record = read_record(out, examples=False)
    runs = tracker_runs(record.trials, record.metric.name)
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
    return ExportedCurves(target, len(runs), exporter.look(record.name, target))
