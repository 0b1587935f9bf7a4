"""Whether the control was tuned well: its rate inside the grid, and replicates that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from helpers.records import failed_result, make_record, make_result, make_trial

from bakeoff.analysis.per_method.control_tuning import control_tuning
from bakeoff.analysis.trial_runs import MethodRuns, runs_by_method
from bakeoff.core.results import Status
from bakeoff.core.trial import REPLICATE

GRID = (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)


def replicates(chosen: Sequence[float | None], grid: Sequence[float] = GRID) -> MethodRuns:
    """Return the control's runs: each replicate's chosen rate; None: all of its rates diverged."""
    pairs = []
    for seed, best in enumerate(chosen, start=1):
        for rate in grid:
            trial = make_trial("lora", rate, seed, REPLICATE)
            if best is None:
                pairs.append((trial, failed_result(trial, Status.DIVERGED)))
            elif rate == best:
                pairs.append((trial, make_result(trial, test=[1, 0, 1])))
            else:
                pairs.append((trial, make_result(trial, losses=(2.0, 1.0), status=Status.STOPPED)))
    return runs_by_method(make_record(pairs, ["lora"]))["lora"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([1e-3, 1e-3, 3.16e-3], {"chosen": 2, "near": 3, "inside_grid": True, "well_tuned": True}),
        ([1e-2, 1e-2, 3.16e-3], {"chosen": 2, "near": 3, "inside_grid": False,
                                 "well_tuned": False}),
        # two replicates of four chose rates a decade away
        ([1e-3, 1e-3, 1e-4, 1e-2], {"chosen": 2, "near": 2, "inside_grid": True,
                                    "well_tuned": False}),
        # a replicate whose rates all diverged agrees with none
        ([1e-3, 1e-3, None], {"chosen": 2, "near": 2, "inside_grid": True, "well_tuned": False}),
    ],
)  # fmt: skip
def test_control_tuning(chosen: list[float | None], expected: Mapping[str, object]) -> None:
    """The most often chosen rate is compared with the grid and with the other replicates."""
    found = control_tuning(replicates(chosen))
    assert found is not None
    assert found["setting"] == {"learning_rate": chosen[0]}
    assert found["replicates"] == len(chosen)
    assert {key: found[key] for key in expected} == expected


def test_single_rate_not_tuned() -> None:
    """A control with one learning rate was not tuned."""
    found = control_tuning(replicates([1e-3, 1e-3], grid=[1e-3]))
    assert found is not None
    assert (found["inside_grid"], found["well_tuned"]) == (False, False)


def test_no_replicates() -> None:
    """Without replicates that were scored there is nothing to say."""
    assert control_tuning(replicates([])) is None
    assert control_tuning(replicates([None])) is None
