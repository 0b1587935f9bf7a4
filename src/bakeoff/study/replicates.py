"""Replicates: all settings of a method race at one seed, and the best of them is scored on test.

A replicate is what a user does: tune, then train. Its settings are compared on validation alone,
and no choice uses the results of another replicate, so the spread between replicates contains the
luck of the search. Every result and decision is written at once and never computed again: an
interrupted study continues where its database ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from bakeoff.analysis.choose import selection_value
from bakeoff.analysis.trial_runs import TrialRun
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import LEARNING_RATE, REPLICATE, Trial
from bakeoff.study import fork
from bakeoff.study.planning import racing
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.estimate import replicates_at_once
from bakeoff.study.planning.sampler import ObservedSetting
from bakeoff.study.scheduler import MayStart, RunContext, Stage, always, run_trials
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import study_dir as study_folder

COST_FIELDS = {
    "memory": "train_peak_bytes",
    "speed": "step_milliseconds",
    "size": "trainable_parameters",
    "forgetting": None,
}
"""Cost axis of the Pareto front -> field of ``Cost``, or None if it is not known while settings
race. An adapter's bytes are proportional to its parameters."""
RUNG = fork.FIRST_RUNG
"""Database value: the step of the first rung, whether it was ripe, and the control's numbers."""
CHOSEN = "scored on test: the best of the {count} settings that its replicate trained to the end"
NOT_CHOSEN = "at step {step}: another setting of its replicate had a lower validation loss"


class Replicates(NamedTuple):
    """Replicates to run: methods, each at its seeds, in one of at most ``rounds`` rounds."""

    seeds: Mapping[str, tuple[int, ...]]
    label: str
    rounds: int = 1


def run_replicates(
    context: RunContext, replicates: Replicates, may_start: MayStart = always
) -> None:
    """Run replicates to their scores on test; what is finished is not run again.

    ``may_start`` is asked before a segment of the first stage: trials that it refuses are stopped.
    """
    for batch in _split_by_disk_space(context, replicates):
        _run_batch(context, batch, may_start)


def _run_batch(context: RunContext, batch: Replicates, may_start: MayStart) -> None:
    study, steps = context.study, context.study.conditions.steps
    trials = [
        trial
        for entry in study.entries
        if entry.name in batch.seeds
        for trial in planning_trials.replicate_trials(
            study.spec, [entry], batch.seeds[entry.name], study.conditions
        )
    ]
    if context.parent is not None:
        count = fork.reuse_replicates(context.parent, study.folder, context.store, trials)
        if count:
            context.progress.say(
                f"{batch.label}: {count} finished replicates are reused from {context.parent.name}"
            )
    if study.spec.budget.settings == 1:
        run_trials(context, Stage(batch.label, (0, steps), test=True), trials, may_start)
        return
    trials, step = _race(context, batch, trials, may_start)
    run_trials(context, Stage(f"{batch.label}, to the end", (step, steps)), trials)
    finalists = _choose_finalists(context, trials)
    run_trials(context, Stage(f"{batch.label}, on test", (steps, steps), test=True), finalists)
    _drop_stale_checkpoints(context, finalists, [], steps)


def _race(
    context: RunContext, batch: Replicates, trials: list[Trial], may_start: MayStart
) -> tuple[list[Trial], int]:
    """Race the settings to the last rung; return those that go on, and the step of that rung.

    Without racing all settings go on from step 0.
    """
    study, steps = context.study, context.study.conditions.steps
    shares = planning_trials.rung_steps(study.spec.budget)
    if not shares:
        stage = Stage(batch.label, (0, steps))
        run_trials(context, stage, trials, may_start)
        return _run_follow_up_settings(context, stage, trials), steps
    first = _run_to_first_rung(context, batch, trials, shares, may_start)
    stage = Stage(f"{batch.label}, to step {first['step']}", (0, first["step"]))
    trials = _run_follow_up_settings(context, stage, trials)
    rungs = (first["step"], *(s for s in shares[1:] if s > first["step"]))
    rules = racing.Rules(
        rungs,
        steps,
        len(study.entries) - 1,
        keep=racing.keep_at_rungs(study.spec.budget.keep, first["ripe"]),
        rounds=batch.rounds,
    )
    trials = _apply_rung(context, trials, 0, rules)
    for number, (start, stop) in enumerate(zip(rungs, rungs[1:], strict=False), start=1):
        run_trials(context, Stage(f"{batch.label}, to step {stop}", (start, stop)), trials)
        trials = _apply_rung(context, trials, number, rules)
    return trials, rungs[-1]


def _run_to_first_rung(
    context: RunContext,
    batch: Replicates,
    trials: Sequence[Trial],
    shares: tuple[int, ...],
    may_start: MayStart,
) -> dict[str, Any]:
    """Train to the first rung; return its step and whether it is ripe (``RUNG``).

    The control's first replicates decide where the rung is, once for the study.
    """
    with context.read() as reader:
        first: dict[str, Any] | None = reader.values(RUNG).get(RUNG)
    if first is not None:
        stage = Stage(f"{batch.label}, to step {first['step']}", (0, first["step"]))
        run_trials(context, stage, trials, may_start)
        return first
    control, start = context.study.entries[0].name, 0
    second = shares[1] if len(shares) > 1 else None
    candidates = racing.rung_candidates(shares[0], context.study.conditions.steps, second)
    for step in candidates:
        stage = Stage(f"{batch.label}, to step {step}", (start, step), initial=control)
        run_trials(context, stage, trials, may_start)
        decision = _decide_ripeness(context, trials, step)
        start = step
        if decision.ripe:
            break
        if step != candidates[-1]:
            context.progress.say(
                f"at step {step} the control's validation loss has hardly fallen: "
                "the settings race on to a later rung"
            )
    first = {"step": start, **asdict(decision)}
    context.store.set(RUNG, first)
    return first


def _decide_ripeness(
    context: RunContext, trials: Sequence[Trial], step: int
) -> racing.RipeDecision:
    """Return whether the control has begun to learn at ``step``, over its replicates."""
    study = context.study
    of_control = [t for t in trials if t.method.name == study.entries[0].name]
    results = _results_at(context, of_control, step)
    initial = {t.seed: r.initial_losses for t, r in results if r is not None and r.initial_losses}
    standings = [_rung_standing(study, t, r) for t, r in results]
    leaders = racing.leading_losses(standings, study.entries[0].name)
    seeds = sorted(leaders.keys() & initial.keys())
    return racing.is_ripe(
        np.array([leaders[s] for s in seeds]), np.array([initial[s] for s in seeds]), step
    )


def _run_follow_up_settings(context: RunContext, stage: Stage, trials: list[Trial]) -> list[Trial]:
    """Run the settings that depend on the first results of their replicate; return all trials.

    These are the sampler's second half (``tune = "all"``), then rates beyond the edge of a grid.
    """
    study = context.study
    follow_ups: list[Trial] = []
    planned = _previously_planned(context, trials)
    for key, first in _by_replicate(trials).items():
        observed = [
            ObservedSetting(t.setting, _selection_value(study, t, r))
            for t, r in _results_at(context, first, stage.stop)
        ]
        entry, seed = first[0].method, first[0].seed
        settings = planning_trials.follow_up_settings(entry, study.spec, observed, seed)
        # A retried trial may have changed what the sampler would propose now. What was planned
        # before is kept, so that the study still has the trials that it has already run.
        follow_ups += planned.get(key, [])[: len(settings)] or [
            dataclasses.replace(first[0], setting=s) for s in settings
        ]
    if follow_ups:
        run_trials(context, stage._replace(title=f"{stage.title}, second half"), follow_ups)
    return _extend_grid_at_edges(context, stage, [*trials, *follow_ups])


def _extend_grid_at_edges(context: RunContext, stage: Stage, trials: list[Trial]) -> list[Trial]:
    """Try one more rate, repeatedly, in replicates whose best rate is at the edge of their grid.

    Methods whose settings differ in more than the learning rate have no edge and are skipped.
    """
    for _ in range(context.study.spec.budget.extend):
        # Trials of this round that an earlier run has planned are not in ``trials`` yet. Each round
        # takes the next of them, so a resumed study repeats the same rounds.
        planned = _previously_planned(context, trials)
        extensions: list[Trial] = []
        for key, tried in _by_replicate(trials).items():
            if any(set(t.setting) != {LEARNING_RATE} for t in tried):
                continue
            results = _results_at(context, tried, stage.stop)
            rate = planning_trials.edge_extension(
                {t.learning_rate: _selection_value(context.study, t, r) for t, r in results}
            )
            if key in planned:
                extensions.append(planned[key][0])
            elif rate is not None:
                extensions.append(dataclasses.replace(tried[0], setting={LEARNING_RATE: rate}))
        if not extensions:
            break
        context.progress.say(_describe_extensions(extensions))
        run_trials(context, stage._replace(title=f"{stage.title}, wider"), extensions)
        trials = [*trials, *extensions]
    return trials


def _describe_extensions(extensions: Sequence[Trial]) -> str:
    counts: dict[str, int] = {}
    for trial in extensions:
        name = f"{trial.method.title} at {trial.learning_rate:g}"
        counts[name] = counts.get(name, 0) + 1
    listed = ", ".join(f"{name} ({n} replicates)" for name, n in counts.items())
    return f"best learning rate at the edge of its grid, trying one more: {listed}"


def _by_replicate(trials: Sequence[Trial]) -> dict[tuple[str, int], list[Trial]]:
    """Return the trials of each method and seed."""
    groups: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.method.name, trial.seed), []).append(trial)
    return groups


def _previously_planned(
    context: RunContext, trials: Sequence[Trial]
) -> dict[tuple[str, int], list[Trial]]:
    """Return each replicate's planned trials that are not among ``trials``, oldest first.

    A planned trial stays part of the study, even if a retried trial changes what would be tried.
    """
    known = {t.id for t in trials}
    examples = {key: group[0] for key, group in _by_replicate(trials).items()}
    with context.read() as reader:
        planned = [t for t in reader.planned_trials() if t.phase == REPLICATE]
    found: dict[tuple[str, int], list[Trial]] = {}
    for trial in planned:
        example = examples.get((trial.method.name, trial.seed))
        # an equal id: same method arguments and conditions, so not left from another version
        if (
            trial.id not in known
            and example is not None
            and dataclasses.replace(example, setting=trial.setting).id == trial.id
        ):
            found.setdefault((trial.method.name, trial.seed), []).append(trial)
    return found


def _apply_rung(
    context: RunContext, trials: Sequence[Trial], number: int, rules: racing.Rules
) -> list[Trial]:
    """Decide at rung ``number`` which trials continue; return them.

    The decisions are written, and so are the reasons why the other trials stop here.
    """
    study, store, step = context.study, context.store, rules.rungs[number]
    control = study.entries[0].name
    results = _results_at(context, trials, step)
    with context.read() as reader:
        costs = racing_costs(reader.costs(), control, study.spec.verdict.pareto)
    standings = [_rung_standing(study, t, r) for t, r in results]
    decisions = racing.decide_rung(standings, control, costs, number, rules)
    decisions = _keep_earlier_decisions(context, decisions, step)
    store.save_decisions([asdict(d) for d in decisions])
    continuing = []
    for (trial, result), decision in zip(results, decisions, strict=True):
        if decision.goes_on:
            continuing.append(trial)
        elif result is not None and result.status is Status.STOPPED and result.reason is None:
            # failures keep their reason, and so do trials that were not started
            store.save(dataclasses.replace(result, reason=f"at step {step}: {decision.reason}"))
    _drop_stale_checkpoints(context, trials, continuing, step)
    return continuing


def _keep_earlier_decisions(
    context: RunContext, decisions: Sequence[racing.Decision], step: int
) -> tuple[racing.Decision, ...]:
    """Return the decisions at a step, those of an earlier run in place of the new ones.

    With other contenders or another verdict they might come out differently, but the trials have
    been trained, or stopped, accordingly.
    """
    with context.read() as reader:
        stored = [racing.Decision(**d) for d in reader.decisions() if d["step"] == step]
    earlier = {d.trial_id: d for d in stored}
    return tuple(earlier.get(d.trial_id, d) for d in decisions)


def _choose_finalists(context: RunContext, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trial of each replicate that is scored on test: the best one on validation."""
    study, store, steps = context.study, context.store, context.study.conditions.steps
    results = dict(zip((t.id for t in trials), _results_at(context, trials, steps), strict=True))
    decisions = []
    for group in _by_replicate(trials).values():
        standings = [_rung_standing(study, *results[t.id]) for t in group]
        tested = [t.id for t in group if _has_test_scores(results[t.id][1])]
        best = tested[0] if tested else racing.choose_finalist(standings)
        for standing in standings:
            goes_on, chosen = standing.trial_id == best, CHOSEN.format(count=len(group))
            reason = chosen if goes_on else NOT_CHOSEN.format(step=steps)
            numbers = {"mean_loss": standing.mean} if math.isfinite(standing.mean) else {}
            decisions.append(
                racing.Decision(steps, standing.trial_id, standing.method, goes_on, reason, numbers)
            )
    decisions = list(_keep_earlier_decisions(context, decisions, steps))
    store.save_decisions([asdict(d) for d in decisions])
    chosen_ids = {d.trial_id for d in decisions if d.goes_on}
    for trial, result in results.values():
        stopped = result is not None and result.status is Status.STOPPED
        if stopped and result is not None and trial.id not in chosen_ids:
            store.save(dataclasses.replace(result, reason=NOT_CHOSEN.format(step=steps)))
    finalists = [t for t in trials if t.id in chosen_ids]
    _drop_stale_checkpoints(context, trials, finalists, steps)
    return finalists


def _has_test_scores(result: TrialResult | None) -> bool:
    """Return whether a trial was scored on test; its results at rungs may be lost."""
    return result is not None and "test" in result.splits


def racing_costs(
    costs: Mapping[str, Cost], control: str, pareto: Sequence[str] | None = None
) -> dict[str, dict[str, float | None]]:
    """Return each method's costs by axis; None if they cannot be compared with the control's.

    The axes are those of the study's Pareto front, ``pareto``; None stands for all axes that are
    known while settings race. Time and memory compare only between methods that run with the same
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
        missing = any(t.id not in at_rung for t in trials)
        last = {t.id: r for t, r in reader.trials()} if missing else {}
    return [(t, at_rung.get(t.id) or last.get(t.id)) for t in trials]


def _selection_value(study: Study, trial: Trial, result: TrialResult | None) -> float:
    """Return the value that settings are selected on: lower is better, inf without a result."""
    if result is None or result.status not in (Status.DONE, Status.STOPPED):
        return math.inf
    run, budget = TrialRun(trial, result), study.spec.budget
    value = selection_value(run, budget.select_on, study.metric.info.better)
    return math.inf if value is None else value


def _drop_stale_checkpoints(
    context: RunContext, trials: Sequence[Trial], continuing: Sequence[Trial], step: int
) -> None:
    """Delete the checkpoints that no trial resumes from: only those of ``continuing`` are kept."""
    ids = {t.id for t in continuing}
    for trial in trials:
        kept = step if trial.id in ids else None
        study_folder.delete_checkpoints(context.study.folder, trial.id, before=kept)


def _split_by_disk_space(context: RunContext, replicates: Replicates) -> Iterator[Replicates]:
    """Yield the replicates in batches, so that no method's checkpoints need too much space.

    Most methods have all of their replicates in the first batch.
    """
    budget = context.study.spec.budget
    with context.read() as reader:
        costs = reader.costs()
    sizes = {}
    for name in replicates.seeds:
        parameters = costs[name].trainable_parameters if name in costs else None
        sizes[name] = replicates_at_once(parameters or 0, budget.settings)
    rest = dict(replicates.seeds)
    while any(rest.values()):
        batch = {name: seeds[: sizes[name]] for name, seeds in rest.items() if seeds}
        rest = {name: seeds[sizes[name] :] for name, seeds in rest.items()}
        yield replicates._replace(seeds=batch)
