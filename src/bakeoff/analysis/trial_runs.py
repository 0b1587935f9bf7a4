"""Trials with their results, grouped by method and phase, as analysis reads them.

Values that are not finite are returned as None, so that no placeholder number enters a statistic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bakeoff.analysis.bootstrap import Scores
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import Trial

NOT_FINISHED = "not finished"


class TrialRun(NamedTuple):
    """A planned trial and its result, which is None until it has ended."""

    trial: Trial
    result: TrialResult | None

    @property
    def status(self) -> Status:
        """The status at the end; a missing result counts as stopped."""
        return self.result.status if self.result else Status.STOPPED

    @property
    def done(self) -> bool:
        """Whether it ended successfully."""
        return self.status is Status.DONE

    @property
    def reason(self) -> str | None:
        """The reason why it is not done."""
        return self.result.reason if self.result else NOT_FINISHED

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss, if it is finite."""
        return None if self.result is None else finite_or_none(self.result.validation_loss)

    def mean_score(self, split: str) -> float | None:
        """Return the mean primary metric on ``split``."""
        if self.result is None or split not in self.result.splits:
            return None
        scores = self.result.splits[split].scores
        return finite_or_none(math.fsum(scores) / len(scores)) if scores else None


@dataclass(frozen=True)
class MethodRuns:
    """Trials of one method, by phase."""

    method: str
    search: tuple[TrialRun, ...]
    final: tuple[TrialRun, ...]

    @property
    def all(self) -> tuple[TrialRun, ...]:
        """All trials, those of the search first."""
        return self.search + self.final

    @property
    def scored(self) -> tuple[TrialRun, ...]:
        """The final trials that succeeded."""
        return tuple(run for run in self.final if run.done)


def finite_or_none(value: float | None) -> float | None:
    """Return the value, or None where it is missing, infinite or not a number."""
    return float(value) if value is not None and math.isfinite(value) else None


def setting_key(setting: dict[str, Any]) -> str:
    """Return a key that is equal for equal settings."""
    return json.dumps(setting, sort_keys=True)


def runs_by_method(record: StudyRecord) -> dict[str, MethodRuns]:
    """Group a record's trials by method; methods without any trial are included."""
    runs = [TrialRun(trial, result) for trial, result in record.trials]
    return {method: _collect_runs(method, runs) for method in record.methods}


def usable_scores(runs: MethodRuns, n_items: int | None) -> Scores | None:
    """Return the method's test scores over its seeds; None if it has none.

    A trial is left out if its scores are missing, not finite, or not of ``n_items`` items.
    """
    rows = {
        run.trial.seed: run.result.splits["test"].scores
        for run in runs.scored
        if run.result is not None and _has_usable_scores(run.result, n_items)
    }
    if not rows:
        return None
    return Scores(tuple(rows), np.array(list(rows.values()), dtype=np.float64))


def count_test_items(record: StudyRecord) -> int | None:
    """Return the number of test items, from the record or else from the scores."""
    stated = record.n_items.get("test")
    if stated:
        return stated
    for _, result in record.trials:
        if result is not None and "test" in result.splits:
            return len(result.splits["test"].scores)
    return None


def _has_usable_scores(result: TrialResult, n_items: int | None) -> bool:
    test = result.splits.get("test")
    if test is None or not test.scores or len(test.scores) != n_items:
        return False
    return all(math.isfinite(score) for score in test.scores)


def _collect_runs(method: str, runs: Iterable[TrialRun]) -> MethodRuns:
    of_method = [run for run in runs if run.trial.method.name == method]
    search = tuple(run for run in of_method if run.trial.phase == "search")
    return MethodRuns(method, search, tuple(run for run in of_method if run.trial.phase == "final"))
