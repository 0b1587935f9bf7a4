"""Trials with their results, grouped by method and phase, as analysis reads them.

Values that are not finite are returned as None, so that no placeholder number enters a statistic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.group_variance import IntArray
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import FINAL, REPLICATE, Trial

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
    """Trials of one method.

    ``search`` are those that settings were chosen by, ``final`` those that were scored on test: in
    replicates, the best of each race is both.
    """

    method: str
    search: tuple[TrialRun, ...]
    final: tuple[TrialRun, ...]

    @property
    def all(self) -> tuple[TrialRun, ...]:
        """All trials, each once, those of the search first."""
        return tuple({run.trial.id: run for run in self.search + self.final}.values())

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


def usable_scores(
    runs: MethodRuns,
    n_items: int | None,
    groups: IntArray | None = None,
    stand_in: Sequence[float] | None = None,
) -> Scores | None:
    """Return the method's test scores over its seeds; None if it has none.

    ``groups`` are those of the items (``item_groups``). A trial is left out if its scores are
    missing, not finite, or not of ``n_items`` items. ``stand_in`` scores stand for replicates in
    which every setting diverged.
    """
    rows: dict[int, Sequence[float]] = {
        run.trial.seed: run.result.splits["test"].scores
        for run in runs.scored
        if run.result is not None and _has_usable_scores(run.result, n_items)
    }
    if stand_in is not None and len(stand_in) == n_items:
        rows |= dict.fromkeys(diverged_seeds(runs), stand_in)
    if not rows:
        return None
    seeds = sorted(rows)
    return Scores(tuple(seeds), np.array([rows[s] for s in seeds], dtype=np.float64), groups)


def count_test_items(record: StudyRecord) -> int | None:
    """Return the number of test items, from the record or else from the scores."""
    stated = record.n_items.get("test")
    if stated:
        return stated
    for _, result in record.trials:
        if result is not None and "test" in result.splits:
            return len(result.splits["test"].scores)
    return None


def item_groups(record: StudyRecord, n_items: int | None) -> IntArray | None:
    """Return the group of each of ``n_items`` test items, ``[items]``; None without groups."""
    if record.groups is None or len(record.groups) != n_items or len(set(record.groups)) < 2:
        return None
    return np.array(record.groups, dtype=np.int64)


def _has_usable_scores(result: TrialResult, n_items: int | None) -> bool:
    test = result.splits.get("test")
    if test is None or not test.scores or len(test.scores) != n_items:
        return False
    return all(math.isfinite(score) for score in test.scores)


def _collect_runs(method: str, runs: Iterable[TrialRun]) -> MethodRuns:
    of_method = [run for run in runs if run.trial.method.name == method]
    search = tuple(run for run in of_method if run.trial.phase in ("search", REPLICATE))
    final = tuple(run for run in of_method if is_final(run.trial, run.result))
    return MethodRuns(method, search, final)


def is_final(trial: Trial, result: TrialResult | None) -> bool:
    """Return whether a trial counts for the verdict.

    It was the best of its replicate, and so was scored on test, or is a final trial of an older
    protocol.
    """
    return trial.phase == FINAL or (result is not None and "test" in result.splits)


def diverged_seeds(runs: MethodRuns) -> tuple[int, ...]:
    """Return the seeds of the replicates in which every setting diverged, ascending."""
    by_seed: dict[int, list[TrialRun]] = {}
    for run in runs.search:
        if run.trial.phase == REPLICATE:
            by_seed.setdefault(run.trial.seed, []).append(run)
    return tuple(
        sorted(s for s, tried in by_seed.items() if all(r.status is Status.DIVERGED for r in tried))
    )


def stand_in_scores(record: StudyRecord) -> tuple[str, Sequence[float]] | None:
    """Return the scores that stand for a replicate whose settings all diverged, and their source.

    They are those of the base model, else of the best constant answer: what the user is left with.
    """
    if record.base_scores is not None:
        return "base", record.base_scores.scores
    return None if record.constant is None else ("constant", record.constant.scores)


def method_scores(record: StudyRecord, by_method: Mapping[str, MethodRuns]) -> dict[str, Scores]:
    """Return the test scores of every method that has some, over its seeds in ascending order."""
    n_items = count_test_items(record)
    groups, stand_in = item_groups(record, n_items), stand_in_scores(record)
    scores = {}
    for method, runs in by_method.items():
        usable = usable_scores(runs, n_items, groups, stand_in[1] if stand_in else None)
        if usable is not None:
            scores[method] = usable
    return scores
