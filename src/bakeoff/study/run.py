"""Run a study from its configuration to its last trial."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bakeoff.core import disk_full, jobs
from bakeoff.core.errors import PreflightError
from bakeoff.core.redact import redact
from bakeoff.core.results import Cost, Status
from bakeoff.core.wall_time import new_wall_key, wall_times
from bakeoff.study import final, search, verify_weights
from bakeoff.study import fork as study_fork
from bakeoff.study import retry as study_retry
from bakeoff.study.config import StudySpec, dump_spec
from bakeoff.study.dry_run import (
    apply_budget,
    plan_budget,
    small_test_warning,
    temporary_study_dir,
    time_methods,
)
from bakeoff.study.executors import Options
from bakeoff.study.failures import CircuitBreaker
from bakeoff.study.monitoring import signals
from bakeoff.study.monitoring.progress import (
    LOG,
    Job,
    LoggingProgress,
    Progress,
    ended,
    with_events,
)
from bakeoff.study.planning import time_budget
from bakeoff.study.planning.estimate import Timing
from bakeoff.study.planning.time_budget import BudgetPlan, Deadline
from bakeoff.study.record import read_values
from bakeoff.study.remote import (
    check_disk_full,
    exclusive_executor,
    make_executor,
    open_executor,
    run_remote,
)
from bakeoff.study.scheduler import RunContext, check_disk_space
from bakeoff.study.setup import compatibility, test_reads
from bakeoff.study.setup.open_study import add_warnings, check_study, open_study
from bakeoff.study.setup.provenance import describe_study, frozen_values
from bakeoff.study.setup.study import Study, prior_trial, whole_segment
from bakeoff.study.storage import repair
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.study.storage.lock import hold_lock


def run_study(
    spec: StudySpec,
    source: Path,
    out: Path,
    progress: Progress | None,
    again: bool,
    retry: bool,
    fork: Path | None,
) -> Path:
    """Run a study to its last trial and return its folder; ``api.run`` documents the arguments.

    Raises:
        BakeoffError: bad input or environment.
        Interrupted, Terminated: Ctrl-C or SIGTERM.
    """
    origin = out
    if fork is not None:
        study_fork.check_can_fork(origin, fork, again)
        out = fork
    study_folder.create(out)
    heard = LoggingProgress(out / LOG, progress or Progress())
    closed = contextlib.closing(heard)
    with (
        disk_full.translate_disk_full(out),
        hold_lock(out),
        closed,
        signals.handle_signals(heard.say) as stop,
    ):
        study = open_study(spec, source, out, heard)
        with Writer(out / study_folder.DATABASE) as store, record_wall_time(store) as passed:
            if fork is not None:
                study_fork.mark_as_fork(origin, out, store)
            for found in repair.clean_up_before_run(out, store):
                heard.say(f"{found.what}: {found.detail}")
            study, deadline = resolve_time_budget(study, store, heard, passed)
            study = add_warnings(study, small_test_warning(study), heard)
            counted = check_resume(study, again, heard)
            study_folder.freeze_data(out, study.splits)
            study_folder.freeze_metric(out, study.metric.name, study.metric.code)
            study = check_study(study, heard)
            freeze_study(study, store, counted)
            if retry:
                study_retry.reset_failed(study, store, heard)
            parent = study_fork.find_trial_source(out, heard)
            with contextlib.closing(open_executor(spec, stop)) as through:
                breaker = CircuitBreaker(len(study.entries))
                running = RunContext(study, store, heard, through, stop, breaker, deadline, parent)
                costs = measure_costs(running)
                check_disk_space(study, costs)
                able = [e for e in study.entries if costs[e.name].status is not Status.INCOMPATIBLE]
                chosen = search.run_search(running, able)
                final.run_final(running, able, chosen)
                verify_weights.verify_saved_weights(running)
    return out


def resolve_time_budget(
    study: Study, store: Writer, progress: Progress, passed: Callable[[], float]
) -> tuple[Study, Deadline | None]:
    """Return what a study's hours buy, chosen once, with its deadline; without hours, the study.

    Raises:
        PreflightError: ``hours-too-few``; ``study-differs`` for other hours than it was begun with.
    """
    values, asked = read_values(study.folder), study.spec.budget.hours
    wanted = list(study.spec.methods.contenders)
    known = values.get("hours")
    if asked is None and known is None:
        return study, None
    if asked is not None:
        begun = {"budget.hours": known["fit"]["hours"]} if known else {}
        if known or "frozen" in values:
            compatibility.check_unchanged(begun, {"budget.hours": asked})
    if known is not None and asked is not None:
        compatibility.check_unchanged({"contenders": known["asked"]}, {"contenders": wanted})
    if known is None:
        with temporary_study_dir(study) as there:
            check_study(there, Progress())  # what cannot be trained on is not timed either
            found = time_methods(there, progress)
        bought = plan_budget(study, found)
        known = {
            "asked": wanted,
            "fit": asdict(bought),
            "timings": [asdict(t) for t in found.timings],
        }
        store.set("hours", known)
    bought = BudgetPlan(**known["fit"])
    if asked is not None:
        study = apply_budget(study, bought)
        progress.say(time_budget.describe(bought, study.entries[0].title))
    timings = tuple(Timing.from_json(t) for t in known["timings"])
    before = sum(wall_times(values))
    return study, Deadline(bought, timings, lambda: before + passed())


def check_resume(study: Study, again: bool, progress: Progress) -> dict[str, Any]:
    """Hold the study against what was frozen before; return what to note of a look at test.

    Raises:
        PreflightError: ``study-differs``, ``test-already-read``.
    """
    with Reader(study.folder / study_folder.DATABASE) as reader, reader.snapshot():
        values, test_read = reader.values(), reader.has_test_scores()
    now = json.loads(json.dumps(frozen_values(study)))
    counted = test_reads.check_test_read(values, now, test_read, again)
    if again and not counted:
        progress.say(test_reads.NO_CHANGE_MESSAGE)
    return {**counted, **study_fork.record_parent(study.folder, values, now, test_read)}


def freeze_study(study: Study, store: Writer, counted: dict[str, Any]) -> None:
    """Freeze the study in its folder, with what is counted of its looks at test."""
    own = None if study.metric.code is None else study.metric.name
    template = (study.conditions.task_options.get("chat") or {}).get("template")
    study_folder.write_study_file(study.folder, study.spec, own, template)
    known = {
        "spec": dump_spec(study.spec),
        "about": describe_study(study),
        "frozen": frozen_values(study),
    }
    store.set_all({**known, **counted})


def measure_costs(running: RunContext) -> dict[str, Cost]:
    """Run the cost probe of each method that has none yet: alone, one after another.

    Raises:
        PreflightError: ``control-incompatible``: without its control a study has no question.
        Interrupted, Terminated: the study was asked to stop.
    """
    study, store, progress, stop = running.study, running.store, running.progress, running.stop
    with running.read() as reader:
        costs = reader.costs()
    missing = [e for e in study.entries if e.name not in costs]
    progress.phase("Cost probes", len(study.entries), len(study.entries) - len(missing))
    # always a process each, one at a time: nothing else may be in a reading of time or memory
    wishes = study.spec.engine.switches
    payloads = [
        whole_segment(study, [prior_trial(study, entry)], wishes).to_json() for entry in missing
    ]
    alone = Options(
        fresh_process=True, stall_timeout=60 * study.spec.engine.patience, should_stop=stop
    )
    through = exclusive_executor(study.spec, stop) or make_executor("process", 1, alone)
    works = [Job("cost probe", e.name, e.title) for e in missing]
    for outcome in through.map(jobs.PROBE_COST, with_events(progress, works, payloads)):
        check_disk_full(study.folder, outcome)
        entry = missing[outcome.index]
        if outcome.value is not None:
            cost = Cost.from_json(outcome.value)
        else:
            cost = Cost(entry.name, Status.FAILED, redact(outcome.error or ""))
        store.save_cost(cost)
        costs[entry.name] = cost
        progress.advance(entry.name)
        ended(progress, works[outcome.index])
        if cost.status is Status.INCOMPATIBLE:
            progress.say(f"{entry.title} cannot run here: {cost.reason}")
        for switch, reason in ((cost.engine or {}).get("reasons") or {}).items():
            progress.say(f"{entry.title} runs without engine.{switch}: {reason}")
    stop.check()
    control = costs[study.entries[0].name]
    if control.status is Status.INCOMPATIBLE:
        raise PreflightError(
            "control-incompatible",
            f"The control {study.entries[0].title} cannot run here: {control.reason}",
            "another control in [methods], or arguments for it in [method.<name>.config].",
        )
    return costs


@contextlib.contextmanager
def record_wall_time(store: Writer) -> Iterator[Callable[[], float]]:
    """Add this run's wall time to the study's, also when it is interrupted; gives its seconds."""
    started, key = time.monotonic(), new_wall_key()
    try:
        yield lambda: time.monotonic() - started
    finally:
        store.set(key, time.monotonic() - started)


def machine() -> dict[str, Any]:
    """Return what a study would find on this machine, with measured matmul rates."""
    through = make_executor("process", 1)
    wishes = {"device": "auto", "precision": "auto", "threads": None, "workers": 1}
    return run_remote(through, jobs.MEASURE_MACHINE, wishes)
