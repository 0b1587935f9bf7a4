"""Trials and results as a database stores them."""

from __future__ import annotations

from bakeoff.core.results import CurvePoint, SplitScores, Status, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.testing.trials import CONDITIONS
from helpers.trials import ENTRIES

TRIALS = [
    Trial(ENTRIES[0], {"learning_rate": 1e-3}, seed, "final", CONDITIONS) for seed in range(3)
]


def result(trial: Trial) -> TrialResult:
    return TrialResult(
        trial_id=trial.id,
        status=Status.DONE,
        curve=(CurvePoint(5, 1.5, 1.25), CurvePoint(10, 0.5, None)),
        splits={
            "test": SplitScores((1.0, 0.0, 0.5), ("a", "b\x00\u2028", ""), None),
            "validation": SplitScores((), (), 0.75),
        },
        trainable_parameters=7,
        train_seconds=1.5,
        warnings=("w",),
    )
