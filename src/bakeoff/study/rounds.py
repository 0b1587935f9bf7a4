"""Rounds: run replicates, look at the test scores, and go on with the contenders that are open.

Before the first round the study writes its schedule, after each round the look at its results. Both
are final: a resumed study goes on from the last look. A change that `--again` allows after the
first look adds one look of its own, at the error level of the reserve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.rounds.look import Look
from bakeoff.analysis.study_looks import OUT_OF_TIME, settled_contenders
from bakeoff.core.trial import MethodEntry, Segment
from bakeoff.study import base_scores, record, retry
from bakeoff.study.planning import rounds as planning_rounds
from bakeoff.study.planning import time_budget
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.replicates import Replicates, run_replicates
from bakeoff.study.scheduler import MayStart, RunContext, always
from bakeoff.study.storage.database.schema import AGAIN, PLANNED

SCHEDULE = "rounds"
"""Database value: the schedule of the rounds (``StudyRecord.rounds``)."""
NOTHING_TO_COMPARE = "no scores"
"""Why the rounds stopped early: the control, or every contender, has no test scores."""


def run_rounds(context: RunContext, entries: Sequence[MethodEntry]) -> None:
    """Run rounds until no contender is open, the schedule has ended or the time is used up."""
    base_scores.score_base(context)
    base_scores.score_constant(context)
    schedule = _resolve_schedule(context, entries)
    names = {entry.name for entry in entries}
    control = context.study.entries[0].name
    with context.read() as reader:
        evaluations = len(reader.values("looks").get("looks", ()))
        again, taken = reader.looks(AGAIN), len(reader.looks(PLANNED))
        unfinished = any(row.status is None for row in reader.trial_rows().values())
    if not taken and schedule["inherited"] != evaluations:  # the parent was evaluated since
        schedule = {**schedule, "inherited": evaluations}
        context.store.set(SCHEDULE, schedule)
    evaluations -= schedule["inherited"]
    if evaluations > len(again):
        _run_again(context, names, schedule, evaluations)
    if evaluations:
        return
    contenders = [name for name in schedule["contenders"] if name in names]
    slices = _slice_seeds(context, schedule["looks"])
    for number, seeds in enumerate(slices, start=1):
        if number <= taken and not unfinished:
            continue
        open_names = _open_contenders(context, contenders, number - 1)
        if number > 1 and not open_names:
            break
        running = dict.fromkeys((control, *open_names), seeds)
        may_start = _deadline_check(context, running, number)
        if may_start is None:
            context.progress.say(
                f"round {number} is not started: it would not finish within the time budget"
            )
            context.store.set(SCHEDULE, {**schedule, "stopped": OUT_OF_TIME})
            break
        label = "Replicates" if len(schedule["looks"]) == 1 else f"Round {number}"
        run_replicates(context, Replicates(running, label, len(slices)), may_start)
        if number > taken and not _take_look(context, number):
            context.store.set(SCHEDULE, {**schedule, "stopped": NOTHING_TO_COMPARE})
            break


def _slice_seeds(context: RunContext, counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the seeds that each round adds, given the numbers of replicates after each."""
    seeds = planning_trials.replicate_seeds(context.study.spec, counts[-1])
    return [seeds[a:b] for a, b in pairwise((0, *counts))]


def _resolve_schedule(context: RunContext, entries: Sequence[MethodEntry]) -> dict[str, Any]:
    """Return the schedule of the rounds; choose and write it before the first round."""
    study, budget = context.study, context.study.spec.budget
    with context.read() as reader:
        values, costs = reader.values(SCHEDULE, "looks"), reader.costs()
    schedule: dict[str, Any] | None = values.get(SCHEDULE)
    if schedule is not None:
        return schedule
    control, *contenders = [entry.name for entry in entries]
    free = planning_rounds.are_lanes_free(costs.get(control))
    looks = planning_rounds.planned_looks(budget, len(contenders), free)
    schedule = {
        "mode": planning_rounds.ROUNDS if budget.seeds == planning_rounds.ROUNDS else "fixed",
        "contenders": contenders,
        "looks": list(looks),
        "seeds": list(planning_trials.replicate_seeds(study.spec, looks[-1])),
        "margin": study.spec.task.margin,
        # evaluations of the same test rows by the studies that this one was forked from
        "inherited": len(values.get("looks", ())),
    }
    context.store.set(SCHEDULE, schedule)
    return schedule


def _open_contenders(context: RunContext, contenders: Sequence[str], taken: int) -> list[str]:
    """Return the contenders that are open after ``taken`` looks."""
    if taken == 0:
        return list(contenders)
    with context.read() as reader:
        last = reader.looks(PLANNED)[taken - 1]
    still_open = Look.from_json(last).still_open
    return [name for name in contenders if name in still_open]


def _take_look(context: RunContext, number: int) -> bool:
    """Analyse the test scores after round ``number`` and write the look; return whether it can be.

    It cannot if the control, or every contender, is without scores.
    """
    looks = record.compute_looks(context.study.folder, number)
    if len(looks) < number:
        return False
    look = looks[-1]
    context.store.save_look(PLANNED, number, look.to_json())
    titles = {entry.name: entry.title for entry in context.study.entries}
    context.progress.say(describe_look(look, titles))
    return True


def describe_look(look: Look, titles: Mapping[str, str]) -> str:
    """Return the outcome of a look in a line: the verdicts, who is closed without, who is open."""
    given = {name: look.contenders[name].verdict for name in look.open if name in look.contenders}

    def listed(names: Iterable[str]) -> str:
        return ", ".join(titles.get(name, name) for name in names)

    verdicts = (
        f"{titles.get(name, name)} {verdict.value}"
        for name, verdict in given.items()
        if verdict is not None and verdict is not Verdict.INCONCLUSIVE
    )
    parts = {
        "verdicts": ", ".join(verdicts),
        "closed without a verdict": listed(
            name for name, verdict in given.items() if verdict is Verdict.INCONCLUSIVE
        ),
        "without scores": listed(look.missing),
        "open": listed(look.still_open),
    }
    outcome = "; ".join(f"{key}: {text}" for key, text in parts.items() if text)
    return f"after {look.replicates} replicates: {outcome}"


def _run_again(
    context: RunContext, names: set[str], schedule: Mapping[str, Any], evaluations: int
) -> None:
    """Run the replicates that a change after the first look asks for, and take one more look."""
    study, budget = context.study, context.study.spec.budget
    with context.read() as reader:
        taken = reader.looks(PLANNED)
    reached = taken[-1]["replicates"] if taken else schedule["looks"][0]
    stated = budget.most if budget.seeds == planning_rounds.ROUNDS else int(budget.seeds)
    count = max(reached, stated or 0)
    settled = settled_contenders(taken)
    control, *others = [entry.name for entry in study.entries if entry.name in names]
    running = [control, *(name for name in others if name not in settled)]
    counts = sorted({*(n for n in schedule["looks"] if n < count), count})
    # the batches of the rounds: trials that are finished are not trained again with new ones
    for seeds in _slice_seeds(context, counts):
        run_replicates(context, Replicates(dict.fromkeys(running, seeds), "One more look"))
    look = record.compute_look_again(study.folder, evaluations, count)
    if look is not None:
        context.store.save_look(AGAIN, evaluations, look.to_json())


def _deadline_check(
    context: RunContext, running: Mapping[str, Sequence[int]], number: int
) -> MayStart | None:
    """Return whether a segment of a round may start; None if the round may not start at all.

    The first round starts always, and its methods as long as there is time for them. Further
    rounds start only if all of their methods are expected to finish.
    """
    deadline, study = context.deadline, context.study
    if deadline is None:
        return always
    with context.read() as reader:
        values = reader.values()
    replicates = max(len(seeds) for seeds in running.values())

    def seconds(names: Sequence[str]) -> float:
        return time_budget.round_seconds(
            study.spec, deadline.timings, study.splits.counts, names, replicates
        )

    if number > 1:
        return always if deadline.allows(seconds(list(running))) else None
    retried = {note["trial_id"] for note in values.get(retry.KEY, ())}
    control = study.entries[0].name

    def may_start(segment: Segment) -> bool:
        name = segment.trials[0].method.name
        if name == control or any(trial.id in retried for trial in segment.trials):
            return True
        return deadline.allows(seconds([name]))

    return may_start
