"""Run a study from its configuration to its last trial.

The stages: open the study, choose the budget, check, freeze, probe costs, run the rounds of
replicates, verify the saved weights. Each stage skips what an earlier run has finished.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files, jobs
from bakeoff.core.clock import new_wall_key, wall_times
from bakeoff.core.errors import PreflightError
from bakeoff.core.redact import redact
from bakeoff.core.results import Cost, Status
from bakeoff.study import fork as study_fork
from bakeoff.study import head_check, rounds, verify_weights
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
from bakeoff.study.monitoring.progress import LOG, Job, LoggingProgress, Progress, with_events
from bakeoff.study.monitoring.signals import StopRequest, handle_signals
from bakeoff.study.planning import time_budget
from bakeoff.study.planning.estimate import Timing
from bakeoff.study.planning.rounds import planned_looks
from bakeoff.study.planning.time_budget import BudgetPlan, Deadline
from bakeoff.study.planning.trials import most_lanes
from bakeoff.study.record import read_values
from bakeoff.study.remote import (
    ExecutorFactory,
    SharedExecutors,
    check_disk_full,
    make_executor,
    run_remote,
)
from bakeoff.study.scheduler import RunContext, check_disk_space
from bakeoff.study.setup import compatibility, defaults, head_rate, older_protocol, test_reads
from bakeoff.study.setup.open_study import add_warnings, check_study, open_study
from bakeoff.study.setup.provenance import describe_study, frozen_values
from bakeoff.study.setup.study import Study, prior_trial, whole_segment
from bakeoff.study.storage import repair
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.study.storage.lock import hold_lock


class ResumeOptions(NamedTuple):
    """What a run does with existing results; ``api.run`` documents the fields."""

    again: bool = False
    retry: bool = False
    fork: Path | None = None


def run_study(
    spec: StudySpec,
    source: Path,
    out: Path,
    progress: Progress | None = None,
    options: ResumeOptions = ResumeOptions(),  # noqa: B008  # immutable
    make_executor: ExecutorFactory = make_executor,
) -> Path:
    """Run a study to its last trial and return its folder; ``api.run`` documents the arguments.

    ``make_executor`` creates the executors; tests inject their own.

    Raises:
        BakeoffError: bad input or environment; ``older-protocol`` for an unfinished study of one.
        Interrupted, Terminated: Ctrl-C or SIGTERM.
    """
    parent, out = out, options.fork or out
    if options.fork is not None:
        study_fork.check_can_fork(parent, out, options.again)
    study_folder.create(out)
    executors = SharedExecutors(make_executor)
    with (
        contextlib.closing(executors),
        _open_session(out, progress or Progress()) as (log, stop),
    ):
        if older_protocol.is_finished(out):
            log.say(older_protocol.ONLY_REPORT)
            return out
        spec = defaults.restore_choices(spec, parent, log)
        study = open_study(spec, source, out, log, executors)
        with Writer(out / study_folder.DATABASE) as store, record_wall_time(store) as elapsed:
            if options.fork is not None:
                study_fork.mark_as_fork(parent, out, store)
            for finding in repair.clean_up_before_run(out, store):
                log.say(f"{finding.what}: {finding.detail}")
            study, deadline = resolve_time_budget(study, store, log, elapsed)
            study = check_and_freeze(study, store, log, options.again)
            if options.retry:
                study_retry.reset_failed(study, store, log)
            reusable = study_fork.find_trial_source(out, log)
            executors.close()  # cost probes need the device for themselves
            breaker = CircuitBreaker(len(study.entries))
            with contextlib.closing(study.executor(stop)) as executor:
                _run_phases(
                    RunContext(study, store, log, executor, stop, breaker, deadline, reusable)
                )
    return out


@contextlib.contextmanager
def _open_session(out: Path, progress: Progress) -> Iterator[tuple[LoggingProgress, StopRequest]]:
    """Hold the study's lock, log events and handle signals while a study runs.

    Raises:
        LockedError: ``study-locked``.
        EnvironmentProblem: ``disk-full``, at any time while the study runs.
    """
    with (
        files.translate_disk_full(out),
        hold_lock(out),
        contextlib.closing(LoggingProgress(out / LOG, progress)) as log,
        handle_signals(log.say) as stop,
    ):
        yield log, stop


def _run_phases(context: RunContext) -> None:
    """Probe costs, run the rounds of replicates, verify the saved weights."""
    study = context.study
    costs = measure_costs(context)
    check_disk_space(study, costs)
    entries = [e for e in study.entries if costs[e.name].status is not Status.INCOMPATIBLE]
    rounds.run_rounds(context, entries)
    verify_weights.verify_saved_weights(context)
    head_check.check_head(context)


def resolve_time_budget(
    study: Study, store: Writer, progress: Progress, elapsed: Callable[[], float]
) -> tuple[Study, Deadline | None]:
    """Return the study with the budget that its hours allow, and its deadline.

    The budget is chosen in the first run, from timed steps, and kept. A study without
    ``budget.hours`` is returned as it is, without a deadline. ``elapsed`` returns this run's
    seconds so far.

    Raises:
        PreflightError: ``hours-too-few``; ``study-differs`` if the hours or contenders changed.
    """
    values, hours = read_values(study.folder), study.spec.budget.hours
    contenders = list(study.spec.methods.contenders)
    stored = values.get("hours")
    if hours is None and stored is None:
        return study, None
    if hours is not None:
        before = {"budget.hours": stored["fit"]["hours"]} if stored else {}
        if stored or "frozen" in values:
            compatibility.check_unchanged(before, {"budget.hours": hours})
    if stored is not None and hours is not None:
        compatibility.check_unchanged({"contenders": stored["asked"]}, {"contenders": contenders})
    if stored is None:
        stored = _choose_budget(study, progress)
        store.set("hours", stored)
    plan = BudgetPlan(**stored["fit"])
    if hours is not None:  # a resolved study file states the budget itself
        study = apply_budget(study, plan)
        progress.say(time_budget.describe(plan, study.entries[0].title))
    timings = tuple(Timing.from_json(t) for t in stored["timings"])
    earlier = sum(wall_times(values))
    return study, Deadline(plan, timings, lambda: earlier + elapsed())


def _choose_budget(study: Study, progress: Progress) -> dict[str, Any]:
    """Time a few steps of each method; return the budget that fits, as the database stores it."""
    with temporary_study_dir(study) as temporary:
        # fail before timing methods that cannot be trained
        temporary = check_study(temporary, Progress())
        timings = time_methods(temporary, progress)
    return {
        "asked": list(study.spec.methods.contenders),
        "fit": asdict(plan_budget(study, timings)),
        "timings": [asdict(t) for t in timings.timings],
    }


def check_and_freeze(study: Study, store: Writer, progress: Progress, again: bool) -> Study:
    """Check that a study can be trained and resumed, and freeze it; return it with its warnings.

    Raises:
        PreflightError: ``study-differs``, ``test-already-read``, and problems of data or methods.
    """
    study = add_warnings(study, small_test_warning(study), progress)
    updates = check_resume(study, again, progress)
    study_folder.freeze_data(study.folder, study.splits)
    study_folder.freeze_metric(study.folder, study.metric.name, study.metric.code)
    study = check_study(study, progress)
    stored = read_values(study.folder).get(head_rate.KEY)
    study = head_rate.set_head_rate(study, stored, store, progress)
    freeze_study(study, store, updates)
    return study


def check_resume(study: Study, again: bool, progress: Progress) -> dict[str, Any]:
    """Compare the study with what was frozen before; return the database values to update.

    They record one more test-set evaluation, or what a fork inherits from its parent; often empty.

    Raises:
        PreflightError: ``study-differs``, ``test-already-read``.
    """
    with Reader(study.folder / study_folder.DATABASE) as reader, reader.snapshot():
        values, test_read = reader.values(), reader.has_test_scores()
    now = json.loads(json.dumps(frozen_values(study)))
    updates = test_reads.check_test_read(values, now, test_read, again)
    if again and not updates:
        progress.say(test_reads.NO_CHANGE_MESSAGE)
    return {**updates, **study_fork.record_parent(study.folder, values, now, test_read)}


def freeze_study(study: Study, store: Writer, updates: dict[str, Any]) -> None:
    """Write the resolved study file and the frozen values, in one transaction with ``updates``."""
    own_metric = None if study.metric.code is None else study.metric.name
    template = (study.conditions.task_options.get("chat") or {}).get("template")
    study_folder.write_study_file(study.folder, study.spec, own_metric, template)
    values = {
        "spec": dump_spec(study.spec),
        "about": describe_study(study, read_values(study.folder).get("about", {})),
        "frozen": frozen_values(study),
        older_protocol.KEY: older_protocol.NUMBER,
    }
    store.set_all({**values, **updates})


def measure_costs(context: RunContext) -> dict[str, Cost]:
    """Run the cost probe of each method that has none yet, one after another.

    Raises:
        PreflightError: ``control-incompatible``: a study needs its control.
        Interrupted, Terminated: the user asked the study to stop.
    """
    study, store, progress, stop = context.study, context.store, context.progress, context.stop
    with context.read() as reader:
        costs = reader.costs()
    missing = [e for e in study.entries if e.name not in costs]
    progress.phase("Cost probes", len(study.entries), len(study.entries) - len(missing))
    switches, lanes = study.spec.engine.switches, _probed_lanes(study)
    segments = [whole_segment(study, [prior_trial(study, e)] * lanes, switches) for e in missing]
    payloads = [segment.to_json() for segment in segments]
    # a new process for each, one at a time: other work would distort time and memory readings
    options = Options(
        fresh_process=True, stall_timeout=60 * study.spec.engine.patience, should_stop=stop
    )
    executor = study.exclusive_executor(stop) or study.make_executor("process", 1, options)
    probes = [Job("cost probe", e.name, e.title) for e in missing]
    for outcome in executor.map(jobs.PROBE_COST, with_events(progress, probes, payloads)):
        check_disk_full(study.folder, outcome)
        entry = missing[outcome.index]
        if outcome.value is not None:
            cost = Cost.from_json(outcome.value)
        else:
            cost = Cost(entry.name, Status.FAILED, redact(outcome.error or ""))
        store.save_cost(cost)
        costs[entry.name] = cost
        progress.advance(entry.name)
        progress.on_end(probes[outcome.index])
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


def _probed_lanes(study: Study) -> int:
    """Return the lanes of a cost probe: the largest group of the study.

    On a CPU lanes are never nearly free, so they are not timed.
    """
    if study.machine["device"] == "cpu":
        return 1
    budget = study.spec.budget
    looks = planned_looks(budget, len(study.entries) - 1, lanes_free=True)
    limit = most_lanes(study.machine["device"], study.spec.engine.max_lanes)
    return min(budget.settings * looks[-1], limit)


@contextlib.contextmanager
def record_wall_time(store: Writer) -> Iterator[Callable[[], float]]:
    """Add this run's wall time to the study's, even if it is interrupted; yield a stopwatch."""
    started, key = time.monotonic(), new_wall_key()
    try:
        yield lambda: time.monotonic() - started
    finally:
        store.set(key, time.monotonic() - started)


def machine() -> dict[str, Any]:
    """Return what a study would detect on this machine, with measured matmul rates."""
    request = {"device": "auto", "precision": "auto", "threads": None, "workers": 1}
    return run_remote(make_executor("process", 1), jobs.MEASURE_MACHINE, request)
