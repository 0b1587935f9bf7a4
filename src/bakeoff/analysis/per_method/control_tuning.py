"""Whether the control was tuned well: a comparison with a control at a poor rate says little."""

from __future__ import annotations

from typing import Any

from bakeoff.analysis.choose import recommended_setting
from bakeoff.analysis.per_method.method_rows import is_on_edge
from bakeoff.analysis.trial_runs import MethodRuns, diverged_seeds, setting_key
from bakeoff.core.trial import LEARNING_RATE, REPLICATE

NEAR = 10**0.5 * 1.05
"""Largest ratio of two neighbouring learning rates of a grid, with its rounding."""
AGREEING = 0.75
"""Share of the replicates that must choose the recommended rate or a neighbour of it.

Neighbours count, because the loss is flat around the best rate: within 2 points of it over a factor
of 10 to 18 in the raw runs of arXiv 2602.04998.
"""


def control_tuning(runs: MethodRuns) -> dict[str, Any] | None:
    """Return whether the control was tuned well, from its replicates; None without replicates.

    ``setting`` is the recommended one, ``chosen`` the number of replicates that chose it, ``near``
    those that chose its rate or a neighbour. ``inside_grid``: lower and higher rates than its were
    tried. It is ``well_tuned`` if it is inside and enough replicates are near.
    """
    chosen = [r for r in runs.scored if r.trial.phase == REPLICATE]
    setting = recommended_setting(chosen)
    if setting is None:
        return None
    replicates = len({r.trial.seed for r in chosen} | set(diverged_seeds(runs)))
    rate = float(setting[LEARNING_RATE])
    ratios = [r.trial.learning_rate / rate for r in chosen]
    near = sum(1 / NEAR <= ratio <= NEAR for ratio in ratios)
    several = len({r.trial.learning_rate for r in runs.search}) > 1
    inside = several and not is_on_edge(runs, setting)
    return {
        "setting": setting,
        "inside_grid": inside,
        "chosen": sum(setting_key(r.trial.setting) == setting_key(setting) for r in chosen),
        "near": near,
        "replicates": replicates,
        "well_tuned": inside and near >= AGREEING * replicates,
    }
