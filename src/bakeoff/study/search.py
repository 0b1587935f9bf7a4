"""The two phases of a study: the search, which may race from rung to rung, and the final trials.

Called by ``api`` with an opened study and its store. Every result and every decision is written as
soon as it is there, and what is there is not computed again: a study that was interrupted replays
its search from the store and goes on where that ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bakeoff.analysis.choose import choose_settings, selection_value
from bakeoff.analysis.trial_runs import TrialRun
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import LEARNING_RATE, MethodEntry, Segment, Trial
from bakeoff.study import retry
from bakeoff.study.planning import racing, time_budget
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
"""The axes, beside quality, on which a method may be on the Pareto front, as far as they are known
while the search runs: an adapter's bytes go with its parameters, forgetting is not measured yet."""
ONLY_SETTING_LEFT = "chosen: the only setting of its method left at step {step}"
ONE_OF_SETTINGS_LEFT = "one of {count} settings of its method left at step {step}"
"""Where a setting that was tried again came as far as one that had been chosen before."""


def run_search(running: RunContext, entries: Sequence[MethodEntry]) -> dict[str, dict[str, Any]]:
    """Try every setting of every method on validation; return each method's best one."""
    study = running.study
    trials = list(planning_trials.search_trials(study.spec, entries, study.conditions))
    stops = planning_trials.rung_steps(study.spec.budget)
    if not stops:
        span = (0, study.conditions.steps)
        run_trials(running, "Search", trials, span)
        _run_follow_up_settings(running, entries, trials, span)
        return _best_settings(running)
    start = 0
    for number, stop in enumerate(stops):
        run_trials(running, f"Search to step {stop}", trials, (start, stop))
        if number == 0:
            trials = _run_follow_up_settings(running, entries, trials, (start, stop))
        trials = _apply_rung(running, trials, number, stops)
        start = stop
    left = Counter(t.method.name for t in trials)
    for trial, result in _results_at(running, trials, start):
        if result is not None:
            count = left[trial.method.name]
            why = (ONLY_SETTING_LEFT if count == 1 else ONE_OF_SETTINGS_LEFT).format(
                step=start, count=count
            )
            running.store.save(dataclasses.replace(result, status=Status.DONE, reason=why))
    _drop_stale_checkpoints(running, trials, [], start)
    return _best_settings(running)


def plan_final_steps(running: RunContext) -> tuple[int, Callable[[Segment], bool]]:
    """Return the steps of the final trials, and what tells whether a group may still begin.

    Where the budget is in hours, the steps fill what is left of them, at the pace that the search
    has shown; they are chosen once. What the user wants tried again begins in any case.
    """
    study, deadline, counts = running.study, running.deadline, running.study.splits.counts
    if deadline is None:
        return study.conditions.steps, lambda _: True
    ids = {t.id for t in planning_trials.search_trials(study.spec, study.entries, study.conditions)}
    with running.read() as reader:
        values, trials = reader.values(), reader.trials()
    took = sum(result.seconds for t, result in trials if t.id in ids and result is not None)
    pace = time_budget.slowdown(study.spec, deadline.timings, counts, took)
    steps = values.get("final_steps")
    if steps is None:
        left = time_budget.TARGET * deadline.seconds - deadline.spent()
        steps = time_budget.refit_final_steps(study.spec, deadline.timings, counts, left, pace)
        running.store.set("final_steps", steps)
        running.progress.say(
            f"final runs take {steps:,} steps: {left / 60:.0f} minutes are left, and the search "
            f"took {pace:.2g} times what was expected"
        )
    seconds = time_budget.final_seconds(study.spec, deadline.timings, counts, steps, pace)
    again = {note["trial_id"] for note in values.get(retry.KEY, ())}

    def begins(group: Segment) -> bool:
        if any(trial.id in again for trial in group.trials):
            return True
        return deadline.allows(seconds.get(group.trials[0].method.name, 0.0))

    return steps, begins


def _run_follow_up_settings(
    running: RunContext, entries: Sequence[MethodEntry], trials: list[Trial], span: tuple[int, int]
) -> list[Trial]:
    """Run the settings that the first ones call for; return all of them."""
    study, more = running.study, []
    earlier = _previous_settings(running, trials)
    for entry in entries:
        own = [t for t in trials if t.method.name == entry.name]
        tried = [
            ObservedSetting(t.setting, _selection_value(study, t, r))
            for t, r in _results_at(running, own, span[1])
        ]
        wanted = planning_trials.follow_up_settings(entry, study.spec, tried)
        again = earlier.get(entry.name, [])[: len(wanted)]
        more += again or [dataclasses.replace(own[0], setting=s) for s in wanted]
    if more:
        run_trials(running, "Search, second half", more, span)
    return _extend_grid_at_edges(running, [*trials, *more], span)


def _extend_grid_at_edges(
    running: RunContext, trials: list[Trial], span: tuple[int, int]
) -> list[Trial]:
    """Give methods whose best rate lies at the edge of those tried one more, and perhaps another.

    Settings that differ in more than the rate have no edge; they are left as they are.
    """
    for again in range(running.study.spec.budget.extend):
        more, earlier = [], _previous_settings(running, trials)
        for method in dict.fromkeys(t.method.name for t in trials):
            own = [t for t in trials if t.method.name == method]
            if any(set(t.setting) != {LEARNING_RATE} for t in own):
                continue
            at = _results_at(running, own, span[1])
            rate = planning_trials.edge_extension(
                {t.learning_rate: _selection_value(running.study, t, r) for t, r in at}
            )
            if method in earlier:
                more.append(earlier[method][0])
            elif rate is not None:
                more.append(dataclasses.replace(own[0], setting={LEARNING_RATE: rate}))
        if not more:
            break
        names = ", ".join(f"{t.method.title} at {t.learning_rate:g}" for t in more)
        running.progress.say(f"best rate at the edge of those tried, one more: {names}")
        run_trials(running, f"Search, wider ({again + 1})", more, span)
        trials = [*trials, *more]
    return trials


def _previous_settings(running: RunContext, trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return the settings beside ``trials`` that each method has been given before, in order.

    What was tried stays tried: a setting that failed and was tried again may call for others.
    """
    known, like = {t.id for t in trials}, {t.method.name: t for t in trials}
    with running.read() as reader:
        planned = [t for t in reader.planned_trials() if t.phase == "search" and t.id not in known]
    found: dict[str, list[Trial]] = {}
    for trial in planned:
        own = like.get(trial.method.name)
        if own is not None and dataclasses.replace(own, setting=trial.setting).id == trial.id:
            found.setdefault(trial.method.name, []).append(trial)
    return found


def _apply_rung(
    running: RunContext, trials: Sequence[Trial], number: int, stops: tuple[int, ...]
) -> list[Trial]:
    """Decide at a rung who goes on; write the decisions, and the results of those that do not."""
    study, store, step = running.study, running.store, stops[number]
    standing = _results_at(running, trials, step)
    rules = racing.Rules(stops, study.conditions.steps, len(study.entries) - 1)
    with running.read() as reader:
        costs = racing_costs(reader.costs(), study.entries[0].name, study.spec.verdict.pareto)
        taken = {
            d["trial_id"]: racing.Decision(**d) for d in reader.decisions() if d["step"] == step
        }
    decisions = racing.decide_rung(
        [_rung_standing(study, t, r) for t, r in standing],
        study.entries[0].name,
        costs,
        number,
        rules,
    )
    # what was decided stays: with other contenders, or another verdict, it might come out otherwise
    decisions = tuple(taken.get(d.trial_id, d) for d in decisions)
    store.save_decisions([asdict(d) for d in decisions])
    on = []
    for (trial, result), decision in zip(standing, decisions, strict=True):
        if decision.goes_on:
            on.append(trial)
        elif result is not None and result.status is Status.STOPPED:
            store.save(dataclasses.replace(result, reason=f"at step {step}: {decision.reason}"))
    _drop_stale_checkpoints(running, trials, on, step)
    return on


def racing_costs(
    costs: Mapping[str, Cost], control: str, wanted: Sequence[str] | None = None
) -> dict[str, dict[str, float | None]]:
    """Return the costs that methods are raced by; None where they do not compare with the control.

    They are the axes of the study's Pareto front (``wanted``; None: all that are known by now).
    What an accelerator saves is no merit of the method, so other switches make other costs.
    """
    known = [name for name, key in COST_FIELDS.items() if key is not None]
    names = known if wanted is None else [name for name in wanted if name in COST_FIELDS]
    own = (costs[control].engine or {}).get("switches")
    found: dict[str, dict[str, float | None]] = {}
    for name, cost in costs.items():
        alike = (cost.engine or {}).get("switches") == own
        found[name] = {
            axis: getattr(cost, key) if key and (alike or axis == "size") else None
            for axis in names
            for key in (COST_FIELDS[axis],)
        }
    return found


def _rung_standing(study: Study, trial: Trial, result: TrialResult | None) -> racing.RungStanding:
    losses = None if result is None or not result.item_losses else np.array(result.item_losses)
    if losses is not None and not np.isfinite(losses).all():
        losses = None
    by_metric = study.spec.budget.select_on == "metric" and losses is not None
    score = _selection_value(study, trial, result) if by_metric else None
    return racing.RungStanding(trial.id, trial.method.name, trial.learning_rate, losses, score)


def _results_at(
    running: RunContext, trials: Sequence[Trial], step: int
) -> list[tuple[Trial, TrialResult | None]]:
    """Return what each trial had given at ``step``: at a rung, or as it ended before or there."""
    with running.read() as reader:
        rungs = reader.results_at_rung(step)
        ended = {t.id: r for t, r in reader.trials()} if len(rungs) < len(trials) else {}
    return [(t, rungs.get(t.id) or ended.get(t.id)) for t in trials]


def _selection_value(study: Study, trial: Trial, result: TrialResult | None) -> float:
    """Return what settings are chosen on where a trial stands: lower is better, inf: nothing."""
    if result is None or result.status not in (Status.DONE, Status.STOPPED):
        return math.inf
    value = selection_value(
        TrialRun(trial, result), study.spec.budget.select_on, study.metric.info.better
    )
    return math.inf if value is None else value


def _best_settings(running: RunContext) -> dict[str, dict[str, Any]]:
    with running.read() as reader:
        return choose_settings(
            reader.trials(), running.study.spec.budget.select_on, running.study.metric.info.better
        )


def _drop_stale_checkpoints(
    running: RunContext, trials: Sequence[Trial], on: Sequence[Trial], step: int
) -> None:
    """Remove the states that nothing will go on from."""
    going = {t.id for t in on}
    for trial in trials:
        kept = step if trial.id in going else None
        study_folder.delete_checkpoints(running.study.folder, trial.id, but=kept)
