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

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_LONGEST = 100
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


def runs_of(
    trials: Iterable[tuple[Trial, TrialResult | None]], metric: str
) -> tuple[TrialRun, ...]:
    """Return every trial that has a curve or a score, in order; equal names get the trial's id."""
    found: dict[str, TrialRun] = {}
    for trial, result in trials:
        if result is None or not (result.curve or result.splits):
            continue
        setting = redact_value(trial.setting)
        said = ",".join(f"{k}={_short(v)}" for k, v in sorted(setting.items()))
        parts = (trial.method.name, said, f"seed={trial.seed}")
        name = "/".join(_UNSAFE.sub("_", part)[:_LONGEST] for part in parts)
        if name in found:
            name = f"{name},{trial.id}"
        parameters: dict[str, Any] = {k: _plain(v) for k, v in setting.items()}
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


def needed(module: str, package: str, extra: str) -> ModuleType:
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


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
