"""The search phase of a study: every setting of every method on validation, with racing.

Every result and decision is written at once and never computed again: an interrupted study replays
its search from the database and continues where that ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bakeoff.analysis.choose import choose_settings, selection_value
from bakeoff.analysis.trial_runs import TrialRun
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import LEARNING_RATE, MethodEntry, Trial
from bakeoff.study.planning import racing
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.sampler import ObservedSetting
from bakeoff.study.scheduler import RunContext, run_trials
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import study_dir as study_folder

COST_FIELDS = {
    "memory": "train_peak_bytes",
    "speed": "step_milliseconds",
    "size": "trainable_parameters",
    "forgetting": None,
}
"""Cost axis of the Pareto front -> field of ``Cost``, or None if it is not known during the search.
An adapter's bytes are proportional to its parameters."""
ONLY_SETTING_LEFT = "chosen: the only setting of its method left at step {step}"
ONE_OF_SETTINGS_LEFT = "one of {count} settings of its method left at step {step}"
"""The reason if a retried setting reached the same rung as one that had been chosen before."""


def run_search(context: RunContext, entries: Sequence[MethodEntry]) -> dict[str, dict[str, Any]]:
    """Try every setting of every method on validation; return each method's best setting."""
    study = context.study
    trials = list(planning_trials.search_trials(study.spec, entries, study.conditions))
    stops = planning_trials.rung_steps(study.spec.budget)
    if not stops:
        span = (0, study.conditions.steps)
        run_trials(context, "Search", trials, span)
        _run_follow_up_settings(context, entries, trials, span)
        return _best_settings(context)
    start = 0
    for number, stop in enumerate(stops):
        run_trials(context, f"Search to step {stop}", trials, (start, stop))
        if number == 0:
            trials = _run_follow_up_settings(context, entries, trials, (start, stop))
        trials = _apply_rung(context, trials, number, stops)
        start = stop
    settings_left = Counter(t.method.name for t in trials)
    for trial, result in _results_at(context, trials, start):
        if result is not None:
            count = settings_left[trial.method.name]
            reason = ONLY_SETTING_LEFT if count == 1 else ONE_OF_SETTINGS_LEFT
            reason = reason.format(step=start, count=count)
            context.store.save(dataclasses.replace(result, status=Status.DONE, reason=reason))
    _drop_stale_checkpoints(context, trials, [], start)
    return _best_settings(context)


def _run_follow_up_settings(
    context: RunContext, entries: Sequence[MethodEntry], trials: list[Trial], span: tuple[int, int]
) -> list[Trial]:
    """Run the settings that depend on the first results; return all trials.

    These are the sampler's second half (``tune = "all"``), then rates beyond the edge of a grid.
    """
    study = context.study
    follow_ups: list[Trial] = []
    planned = _previously_planned(context, trials)
    for entry in entries:
        first = [t for t in trials if t.method.name == entry.name]
        observed = [
            ObservedSetting(t.setting, _selection_value(study, t, r))
            for t, r in _results_at(context, first, span[1])
        ]
        settings = planning_trials.follow_up_settings(entry, study.spec, observed)
        # A retried trial may have changed what the sampler would propose now. What was planned
        # before is kept, so that the study still has the trials that it has already run.
        follow_ups += planned.get(entry.name, [])[: len(settings)] or [
            dataclasses.replace(first[0], setting=s) for s in settings
        ]
    if follow_ups:
        run_trials(context, "Search, second half", follow_ups, span)
    return _extend_grid_at_edges(context, [*trials, *follow_ups], span)


def _extend_grid_at_edges(
    context: RunContext, trials: list[Trial], span: tuple[int, int]
) -> list[Trial]:
    """Try one more rate, repeatedly, for methods whose best rate is at the edge of their grid.

    Methods whose settings differ in more than the learning rate have no edge and are skipped.
    """
    for round_number in range(context.study.spec.budget.extend):
        # Trials of this round that an earlier run has planned are not in ``trials`` yet. Each round
        # takes the next of them, so a resumed study repeats the same rounds.
        planned = _previously_planned(context, trials)
        extensions: list[Trial] = []
        for method in dict.fromkeys(t.method.name for t in trials):
            tried = [t for t in trials if t.method.name == method]
            if any(set(t.setting) != {LEARNING_RATE} for t in tried):
                continue
            results = _results_at(context, tried, span[1])
            rate = planning_trials.edge_extension(
                {t.learning_rate: _selection_value(context.study, t, r) for t, r in results}
            )
            if method in planned:
                extensions.append(planned[method][0])
            elif rate is not None:
                extensions.append(dataclasses.replace(tried[0], setting={LEARNING_RATE: rate}))
        if not extensions:
            break
        names = ", ".join(f"{t.method.title} at {t.learning_rate:g}" for t in extensions)
        context.progress.say(
            f"best learning rate at the edge of its grid, trying one more: {names}"
        )
        run_trials(context, f"Search, wider ({round_number + 1})", extensions, span)
        trials = [*trials, *extensions]
    return trials


def _previously_planned(context: RunContext, trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return each method's planned search trials that are not among ``trials``, oldest first.

    A planned trial stays part of the study, even if a retried trial changes what would be tried.
    """
    known, examples = {t.id for t in trials}, {t.method.name: t for t in trials}
    with context.read() as reader:
        planned = [t for t in reader.planned_trials() if t.phase == "search" and t.id not in known]
    by_method: dict[str, list[Trial]] = {}
    for trial in planned:
        example = examples.get(trial.method.name)
        # an equal id: same method arguments and conditions, so not left from another version
        if (
            example is not None
            and dataclasses.replace(example, setting=trial.setting).id == trial.id
        ):
            by_method.setdefault(trial.method.name, []).append(trial)
    return by_method


def _apply_rung(
    context: RunContext, trials: Sequence[Trial], number: int, stops: tuple[int, ...]
) -> list[Trial]:
    """Decide at rung ``number`` which trials continue; return them.

    The decisions are written, and so are the reasons why the other trials stop here.
    """
    study, store, step = context.study, context.store, stops[number]
    control = study.entries[0].name
    results = _results_at(context, trials, step)
    rules = racing.Rules(stops, study.conditions.steps, len(study.entries) - 1, keep=(2, 1))
    with context.read() as reader:
        costs = racing_costs(reader.costs(), control, study.spec.verdict.pareto)
        earlier = {
            d["trial_id"]: racing.Decision(**d) for d in reader.decisions() if d["step"] == step
        }
    standings = [_rung_standing(study, t, r) for t, r in results]
    decisions = racing.decide_rung(standings, control, costs, number, rules)
    # An earlier run's decision stands: with other contenders or another verdict it might come out
    # differently, but the trials have been trained, or stopped, accordingly.
    decisions = tuple(earlier.get(d.trial_id, d) for d in decisions)
    store.save_decisions([asdict(d) for d in decisions])
    continuing = []
    for (trial, result), decision in zip(results, decisions, strict=True):
        if decision.goes_on:
            continuing.append(trial)
        elif result is not None and result.status is Status.STOPPED:  # failures keep their reason
            store.save(dataclasses.replace(result, reason=f"at step {step}: {decision.reason}"))
    _drop_stale_checkpoints(context, trials, continuing, step)
    return continuing


def racing_costs(
    costs: Mapping[str, Cost], control: str, pareto: Sequence[str] | None = None
) -> dict[str, dict[str, float | None]]:
    """Return each method's costs by axis; None if they cannot be compared with the control's.

    The axes are those of the study's Pareto front, ``pareto``; None stands for all axes that are
    known during the search. Time and memory compare only between methods that run with the same
    accelerators: what an accelerator saves is no property of the method.
    """
    known = [axis for axis, field in COST_FIELDS.items() if field is not None]
    axes = known if pareto is None else [axis for axis in pareto if axis in COST_FIELDS]
    control_switches = (costs[control].engine or {}).get("switches")

    def value(cost: Cost, axis: str) -> float | None:
        field = COST_FIELDS[axis]
        comparable = (cost.engine or {}).get("switches") == control_switches or axis == "size"
        return getattr(cost, field) if field and comparable else None

    return {name: {axis: value(cost, axis) for axis in axes} for name, cost in costs.items()}


def _rung_standing(study: Study, trial: Trial, result: TrialResult | None) -> racing.RungStanding:
    losses = None if result is None or not result.item_losses else np.array(result.item_losses)
    if losses is not None and not np.isfinite(losses).all():
        losses = None
    by_metric = study.spec.budget.select_on == "metric" and losses is not None
    score = _selection_value(study, trial, result) if by_metric else None
    return racing.RungStanding(
        trial.id, trial.method.name, trial.seed, trial.learning_rate, losses, score
    )


def _results_at(
    context: RunContext, trials: Sequence[Trial], step: int
) -> list[tuple[Trial, TrialResult | None]]:
    """Return each trial's result at a rung, or its last result if it ended before or there."""
    with context.read() as reader:
        at_rung = reader.results_at_rung(step)
        last = {t.id: r for t, r in reader.trials()} if len(at_rung) < len(trials) else {}
    return [(t, at_rung.get(t.id) or last.get(t.id)) for t in trials]


def _selection_value(study: Study, trial: Trial, result: TrialResult | None) -> float:
    """Return the value that settings are selected on: lower is better, inf without a result."""
    if result is None or result.status not in (Status.DONE, Status.STOPPED):
        return math.inf
    run, budget = TrialRun(trial, result), study.spec.budget
    value = selection_value(run, budget.select_on, study.metric.info.better)
    return math.inf if value is None else value


def _best_settings(context: RunContext) -> dict[str, dict[str, Any]]:
    study = context.study
    with context.read() as reader:
        return choose_settings(
            reader.trials(), study.spec.budget.select_on, study.metric.info.better
        )


def _drop_stale_checkpoints(
    context: RunContext, trials: Sequence[Trial], continuing: Sequence[Trial], step: int
) -> None:
    """Delete the checkpoints that no trial resumes from: only those of ``continuing`` are kept."""
    ids = {t.id for t in continuing}
    for trial in trials:
        kept = step if trial.id in ids else None
        study_folder.delete_checkpoints(context.study.folder, trial.id, but=kept)
