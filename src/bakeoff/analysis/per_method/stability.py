"""Convergence and stability of each method: how often it fails, how narrow its tuning, how smooth.

Stands beside ``compare`` in analysis: a method's trials in, ``methods[].stability`` of the report
out. ``docs/stability.md`` has the definitions. A trial that the race stopped counts as far as it
went: it is neither a failure nor a divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import ALPHA
from bakeoff.analysis.trial_runs import MethodRuns, TrialRun, finite_or_none
from bakeoff.core.record import MetricInfo
from bakeoff.core.results import Status

LOSS_MARGIN = 0.05
"""Share of the best loss that counts as the margin where no score was taken: about what the luck
of a seed moves a loss by at these sizes (``race.DRIFT``)."""
SPIKE_FLOOR = 0.05
"""Share of a run's first training loss that a rise must be above to be called a spike."""
SPIKE_DEVIATIONS = 3.0
"""Robust standard deviations above the median change that a rise must be above, too."""
MAD_TO_SD = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


class LossPoint(NamedTuple):
    """One loss read at a step, in nats."""

    step: int
    loss: float


def stability_row(
    runs: MethodRuns,
    scores: Scores | None,
    metric: MetricInfo,
    margin: float,
    steps_to_control: int | None,
) -> dict[str, Any]:
    """Return a method's ``stability``; whatever its trials do not tell is None.

    ``margin`` is in the metric's unit, ``steps_to_control`` the steps to the control's final loss.
    """
    return {
        "divergence": divergence_share(runs),
        "plateau": learning_rate_plateau(runs, metric, margin),
        "seed_sd": seed_sd(scores),
        "spikes": loss_spikes(runs),
        "steps_to_control_loss": steps_to_control,
        "validation_area": validation_area(runs),
    }


def stopped_by_race(run: TrialRun) -> bool:
    """Tell whether the race stopped a trial: it has a result, stopped for a reason."""
    stopped = run.result is not None and run.status is Status.STOPPED
    return stopped and run.reason is not None


def is_unfinished(run: TrialRun) -> bool:
    """Tell whether a trial is still to be finished: without a result, or waiting at a rung."""
    return run.status is Status.STOPPED and not stopped_by_race(run)


def divergence_share(runs: MethodRuns) -> dict[str, Any] | None:
    """Return the share of a method's trials that diverged, over settings and seeds.

    Counted are trials that trained: done, diverged, or stopped by the race.
    """
    trained = [run for run in runs.all if _has_trained(run)]
    if not trained:
        return None
    diverged = sum(run.status is Status.DIVERGED for run in trained)
    return {"share": diverged / len(trained), "diverged": diverged, "trials": len(trained)}


def seed_sd(scores: Scores | None) -> dict[str, Any] | None:
    """Return the standard deviation of the test score over seeds, None for fewer than two.

    In the metric's unit, with n - 1 below the line; the 95 % interval is chi-squared's.
    """
    if scores is None or len(scores.seeds) < 2:
        return None
    n = len(scores.seeds)
    spread = stdev(scores.values.mean(axis=1).tolist())
    # chdtri takes the upper tail
    low, high = (
        spread * math.sqrt((n - 1) / special.chdtri(n - 1, tail))
        for tail in (ALPHA / 2, 1 - ALPHA / 2)
    )
    return {"estimate": spread, "low": low, "high": high, "n_seeds": n}


def learning_rate_plateau(
    runs: MethodRuns, metric: MetricInfo, margin: float
) -> dict[str, Any] | None:
    """Return how many decades of learning rate are as good as the best, from the search.

    From the best rate outwards to the last one in each direction that is within the margin; a rate
    that diverged ends it. Read from the validation score where every trial has one at its end, else
    from the validation loss (``_by_loss``). None with fewer than two rates.
    """
    by_rate: dict[float, list[TrialRun]] = {}
    for run in runs.search:
        if _has_trained(run):
            by_rate.setdefault(run.trial.learning_rate, []).append(run)
    rates = {rate: by_rate[rate] for rate in sorted(by_rate)}
    sound = [run for tried in rates.values() for run in tried if run.status is not Status.DIVERGED]
    if len(rates) < 2 or not sound:
        return None
    finals = {_last_step(run) for run in sound}
    scored = all(run.done and run.mean_score("validation") is not None for run in sound)
    # scores taken at different steps do not compare: what the race stopped has one of its rung
    if scored and len(finals) == 1:
        return _plateau_by_score(rates, metric, margin)
    return _plateau_by_loss(rates, sound)


def loss_spikes(runs: MethodRuns) -> dict[str, Any] | None:
    """Return how many rises of the training loss between readings are spikes, over all trials.

    A rise is one when it is above 5 % of its run's first reading and above the median change of all
    the method's readings by 3 robust standard deviations (1.4826 times the MAD).
    """
    trained = [run for run in runs.all if _has_trained(run)]
    curves = [curve for run in trained if len(curve := _train_losses(run)) > 1]
    changes = [(b - a, curve[0]) for curve in curves for a, b in pairwise(curve)]
    if not changes:
        return None
    rises = np.array([rise for rise, _ in changes])
    median = float(np.median(rises))
    beyond = median + SPIKE_DEVIATIONS * MAD_TO_SD * float(np.median(np.abs(rises - median)))
    count = sum(rise > max(SPIKE_FLOOR * first, beyond) for rise, first in changes)
    return {"count": count, "changes": len(changes), "trials": len(curves)}


def validation_area(runs: MethodRuns) -> dict[str, Any] | None:
    """Return the area under the validation curve over its steps, in nats: mean over final seeds.

    By trapezoids from the first to the last reading; a seed with a single reading has none.
    """
    areas = [area for run in runs.scored if (area := _curve_area(run)) is not None]
    return {"estimate": fmean(areas), "n_seeds": len(areas)} if areas else None


def _has_trained(run: TrialRun) -> bool:
    """Tell whether a trial says something of its method: failures and what is open do not."""
    return stopped_by_race(run) or run.status in (Status.DONE, Status.DIVERGED)


def _plateau_by_score(
    rates: Mapping[float, Sequence[TrialRun]], metric: MetricInfo, margin: float
) -> dict[str, Any]:
    """Return the plateau of the validation score, each rate's best setting counting."""
    sign = -1 if metric.better == "higher" else 1

    def read(run: TrialRun) -> float | None:
        score = run.mean_score("validation")
        return None if score is None else sign * score

    values = _best_by_rate(rates, read)
    best = min((v, rate) for rate, v in values.items() if v is not None)[1]
    return _plateau_span(values, best, margin) | {"by": "score", "step": None}


def _plateau_by_loss(
    rates: Mapping[float, Sequence[TrialRun]], sound: Sequence[TrialRun]
) -> dict[str, Any] | None:
    """Return the plateau of the validation loss, relative to that of the trial that got furthest.

    A trial is compared at the last step that it has in common with it: what the race stopped, at
    its rung. None where some trial shares no step.
    """
    first = min(
        sound, key=lambda r: (-_last_step(r), _validation_losses(r).get(_last_step(r), math.inf))
    )
    reference = _validation_losses(first)
    common = {
        run.trial.id: max(_validation_losses(run).keys() & reference, default=None) for run in sound
    }
    if None in common.values():
        return None

    def read(run: TrialRun) -> float | None:
        step = common[run.trial.id]
        if step is None:
            return None
        excess = _validation_losses(run)[step] - reference[step]
        # a loss of nothing has no twentieth: then only nothing is as good
        if excess <= 0 or reference[step] <= 0:
            return 0.0 if excess <= 0 else math.inf
        return excess / reference[step]

    span = _plateau_span(_best_by_rate(rates, read), first.trial.learning_rate, LOSS_MARGIN)
    return span | {"by": "loss", "step": min(step for step in common.values() if step is not None)}


def _best_by_rate(
    rates: Mapping[float, Sequence[TrialRun]], read: Callable[[TrialRun], float | None]
) -> dict[float, float | None]:
    """Return each rate's best value (lower is better); None where one of its trials diverged."""
    found: dict[float, float | None] = {}
    for rate, tried in rates.items():
        values = [None if run.status is Status.DIVERGED else read(run) for run in tried]
        known = [v for v in values if v is not None]
        found[rate] = min(known) if len(known) == len(values) else None
    return found


def _plateau_span(
    values: Mapping[float, float | None], best: float, allowed: float
) -> dict[str, Any]:
    """Walk from the best rate both ways while values stay within ``allowed`` of its own."""
    rates, at = list(values), list(values).index(best)
    own = values[best]
    limit = (math.inf if own is None else own) + allowed * (1 + 1e-9)  # at the margin is within

    def within(index: int) -> bool:
        if not 0 <= index < len(rates):
            return False
        value = values[rates[index]]
        return value is not None and value <= limit

    low = high = at
    while within(low - 1):
        low -= 1
    while within(high + 1):
        high += 1
    return {
        "decades": math.log10(rates[high] / rates[low]),
        "low": rates[low],
        "high": rates[high],
        "rates": len(rates),
        "open": low == 0 or high == len(rates) - 1,
    }


def _validation_losses(run: TrialRun) -> dict[int, float]:
    """Return the validation losses that a run read, by step."""
    points = run.result.curve if run.result else ()
    return {p.step: loss for p in points if (loss := finite_or_none(p.validation_loss)) is not None}


def _last_step(run: TrialRun) -> int:
    """Return the last step at which a run read a validation loss; 0 for none."""
    return max(_validation_losses(run), default=0)


def _train_losses(run: TrialRun) -> list[float]:
    points = run.result.curve if run.result else ()
    return [loss for p in points if (loss := finite_or_none(p.train_loss)) is not None]


def _curve_area(run: TrialRun) -> float | None:
    readings = [LossPoint(step, loss) for step, loss in sorted(_validation_losses(run).items())]
    if len(readings) < 2:
        return None
    area = sum((b.step - a.step) * (a.loss + b.loss) / 2 for a, b in pairwise(readings))
    return area / (readings[-1].step - readings[0].step)
