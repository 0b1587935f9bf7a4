"""The final phase: fresh seeds of each method's best setting, scored on test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bakeoff.core import jobs
from bakeoff.core.results import SplitScores
from bakeoff.core.trial import MethodEntry
from bakeoff.study import retry
from bakeoff.study.monitoring.progress import Job, ended, with_events
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.remote import check_disk_full
from bakeoff.study.scheduler import RunContext, run_trials
from bakeoff.study.search import plan_final_steps
from bakeoff.study.setup.study import prior_trial, whole_segment
from bakeoff.tasks import task_class


def run_final(
    running: RunContext, entries: Sequence[MethodEntry], chosen: Mapping[str, dict[str, Any]]
) -> None:
    """Train the chosen settings at fresh seeds, in full, and score them on test.

    Seeds that a later look at test asked for are groups of their own: those before are not trained
    once more with them.
    """
    study = running.study
    steps, begins = plan_final_steps(running)
    conditions = dataclasses.replace(study.conditions, steps=steps)
    trials = planning_trials.final_trials(study.spec, entries, conditions, chosen)
    with running.read() as reader:
        looks = reader.values().get("looks", ())
    before = {look.get("seeds", 0) for look in looks}  # a fork's own look has none
    if trials:
        score_base(running)
    seeds, start, most = sorted({t.seed for t in trials}), 0, study.spec.budget.seeds
    for end in sorted({n for n in before if 0 < n < most} | {most}):
        own = [t for t in trials if t.seed in seeds[start:end]]
        title = f"Final, {end - start} more seeds" if start else "Final"
        run_trials(running, title, own, (0, steps), begins)
        start = end


def base_note(why: str) -> str:
    """Say that the base's answers were not generated fast."""
    return f"The untouched base answered by plain generate: {why}."


def score_base(running: RunContext) -> None:
    """Score the untouched base on test, once, where its task lets it answer at all.

    A failure is noted and said; the study goes on without this number.
    """
    study, store = running.study, running.store
    answers: bool = task_class(study.spec.task.kind).scores_base
    with running.read() as reader:
        if not answers or retry.BASE_SCORES in reader.values():
            return
    running.progress.phase("The untouched base", 1, 0)
    wishes = study.spec.engine.switches
    payload = whole_segment(study, [prior_trial(study, study.entries[0])], wishes).to_json()
    work = Job("base", study.entries[0].name, "The untouched base")
    found = list(
        running.executor.map(jobs.SCORE_BASE, with_events(running.progress, [work], [payload]))
    )
    running.stop.check()
    (outcome,) = found
    check_disk_full(study.folder, outcome)
    scored = outcome.value or {"error": outcome.error}
    store.set(retry.BASE_SCORES, scored)
    running.progress.advance("base")
    ended(running.progress, work)
    if scored.get("error"):
        running.progress.say(f"the untouched base could not be scored: {scored['error']}")
    elif scored.get("note"):
        running.progress.say(base_note(scored["note"]))


def base_scores(values: Mapping[str, Any]) -> SplitScores | None:
    """Return the untouched base's test scores, None where it has none (yet)."""
    found = (values.get(retry.BASE_SCORES) or {}).get("scores")
    return SplitScores(tuple(found["scores"]), tuple(found["predictions"]), None) if found else None
