"""Convergence and stability of each method: divergence, width of the tuning plateau, loss spikes.

``docs/stability.md`` has the definitions. A trial that the race stopped counts up to its last step:
it is neither a failure nor a divergence.
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
"""Margin as a share of the best loss, for methods without scores: about the effect of a seed on a
loss at these sizes (``racing.DRIFT``)."""
SPIKE_FLOOR = 0.05
"""A spike is a rise of more than this share of the run's first training loss."""
SPIKE_DEVIATIONS = 3.0
"""A spike also rises this many robust standard deviations above the median change."""
MAD_TO_SD = 1.4826
"""Ratio of standard deviation to median absolute deviation of a normal distribution."""


class LossPoint(NamedTuple):
    """Loss in nats at a step."""

    step: int
    loss: float


def stability_row(
    runs: MethodRuns,
    scores: Scores | None,
    metric: MetricInfo,
    margin: float,
    steps_to_control: int | None,
) -> dict[str, Any]:
    """Return a method's ``stability``; values that its trials do not provide are None.

    ``margin`` is in the metric's unit; ``steps_to_control`` is the number of steps to the control's
    final loss.
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
    """Return whether the race stopped a trial: its result is stopped, with a reason."""
    stopped = run.result is not None and run.status is Status.STOPPED
    return stopped and run.reason is not None


def is_unfinished(run: TrialRun) -> bool:
    """Return whether a trial is unfinished: without a result, or paused at a rung."""
    return run.status is Status.STOPPED and not stopped_by_race(run)


def divergence_share(runs: MethodRuns) -> dict[str, Any] | None:
    """Return the share of a method's trials that diverged, over settings and seeds.

    Trials that are done, diverged or stopped by the race count.
    """
    trained = [run for run in runs.all if _has_trained(run)]
    if not trained:
        return None
    diverged = sum(run.status is Status.DIVERGED for run in trained)
    return {"share": diverged / len(trained), "diverged": diverged, "trials": len(trained)}


def seed_sd(scores: Scores | None) -> dict[str, Any] | None:
    """Return the standard deviation of the test score over seeds, None for fewer than two.

    In the metric's unit, the sample standard deviation with a chi-squared 95 % interval.
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
    """Return the range of learning rates that are as good as the best, in decades.

    The range extends from the best rate in both directions while rates are within the margin; a
    rate that diverged ends it. It is measured on the validation score if every trial has one at its
    end, else on the validation loss (``_plateau_by_loss``). None with fewer than two rates.
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
    # scores at different steps are not comparable: trials that the race stopped have their rung's
    if scored and len(finals) == 1:
        return _plateau_by_score(rates, metric, margin)
    return _plateau_by_loss(rates, sound)


def loss_spikes(runs: MethodRuns) -> dict[str, Any] | None:
    """Return the number of spikes in the training losses of all trials.

    A rise between two logged losses is a spike if it exceeds 5 % of the run's first loss and the
    median change over the method's runs by 3 robust standard deviations (1.4826 times the MAD).
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
    """Return the mean height of the validation curve in nats: its area over its steps.

    The area is trapezoidal from the first to the last validation; the result is the mean over final
    seeds with at least two validations.
    """
    areas = [area for run in runs.scored if (area := _curve_area(run)) is not None]
    return {"estimate": fmean(areas), "n_seeds": len(areas)} if areas else None


def _has_trained(run: TrialRun) -> bool:
    """Return whether a trial trained: failed and unfinished trials do not count."""
    return stopped_by_race(run) or run.status in (Status.DONE, Status.DIVERGED)


def _plateau_by_score(
    rates: Mapping[float, Sequence[TrialRun]], metric: MetricInfo, margin: float
) -> dict[str, Any]:
    """Return the plateau by validation score, over the best setting of each rate."""
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
    """Return the plateau by validation loss, relative to the trial that got furthest.

    Each trial is compared with that one at their last common step; for a trial that the race
    stopped, this is its rung. None if some trial has no common step.
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
        # a relative excess over a loss of 0 is undefined: then only 0 is as good
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
    """Return the range around the best rate whose values stay within ``allowed`` of its value."""
    rates, at = list(values), list(values).index(best)
    lowest = values[best]
    # a value exactly at the margin is within it, in spite of rounding
    limit = (math.inf if lowest is None else lowest) + allowed * (1 + 1e-9)

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
    """Return a run's validation losses by step."""
    points = run.result.curve if run.result else ()
    return {p.step: loss for p in points if (loss := finite_or_none(p.validation_loss)) is not None}


def _last_step(run: TrialRun) -> int:
    """Return the last step with a validation loss; 0 if there is none."""
    return max(_validation_losses(run), default=0)


def _train_losses(run: TrialRun) -> list[float]:
    points = run.result.curve if run.result else ()
    return [loss for p in points if (loss := finite_or_none(p.train_loss)) is not None]


def _curve_area(run: TrialRun) -> float | None:
    points = [LossPoint(step, loss) for step, loss in sorted(_validation_losses(run).items())]
    if len(points) < 2:
        return None
    area = sum((b.step - a.step) * (a.loss + b.loss) / 2 for a, b in pairwise(points))
    return area / (points[-1].step - points[0].step)
