"""Run a study's trials through its executor, and write each result as soon as it arrives.

If a worker dies, its segment is retried in halves, then trial by trial, before a trial counts as
failed. The same failure in several methods pauses the study. A request to stop ends the batch; the
trials' checkpoints are kept.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import jobs, trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.redact import redact
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import Segment, Trial
from bakeoff.core.trial_dir import TRIALS
from bakeoff.study import fork
from bakeoff.study.executors import CanExcludeGpu, Executor, Outcome
from bakeoff.study.failures import CircuitBreaker, FinishedTrial
from bakeoff.study.monitoring.progress import Job, Progress
from bakeoff.study.monitoring.signals import StopRequest
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.estimate import disk_bytes
from bakeoff.study.planning.rounds import are_lanes_free, planned_looks
from bakeoff.study.planning.time_budget import Deadline
from bakeoff.study.remote import check_disk_full
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import repair
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.tasks import task_class

OUT_OF_TIME = "skipped: it would not have finished within the time budget"
MAX_CRASHES = 2
"""A trial counts as failed after it was the only one in this many crashed workers. The first crash
may have been an out-of-memory kill that another process caused."""


MayStart = Callable[[Segment], bool]
"""Whether a segment may start now."""


def always(_: Segment) -> bool:
    """Return True: every segment may start."""
    return True


class Stage(NamedTuple):
    """A stage of a batch of trials: the steps of ``span``, and what is measured.

    ``initial`` names a method whose validation losses are measured before the first step.
    ``test``: the trials are scored on test at the end, and their weights saved.
    """

    title: str
    span: tuple[int, int]
    initial: str | None = None
    test: bool = False

    @property
    def stop(self) -> int:
        """The step at which the stage ends."""
        return self.span[1]


class RunContext(NamedTuple):
    """The study that is run, with the resources that all phases share."""

    study: Study
    store: Writer
    progress: Progress
    executor: Executor
    stop: StopRequest
    breaker: CircuitBreaker
    deadline: Deadline | None = None
    parent: fork.TrialSource | None = None

    def read(self) -> Reader:
        """Open the study's database for reading."""
        return Reader(self.study.folder / study_folder.DATABASE)


def run_trials(
    context: RunContext, stage: Stage, trials: Sequence[Trial], may_start: MayStart = always
) -> None:
    """Train the missing ones of ``trials`` over the steps of ``stage``, and score them.

    If some trials of a group are missing, the whole group is trained, so that a resumed study
    computes what an uninterrupted one does; existing results stay. Trials that a fork reuses from
    its parent belong to no group. ``may_start`` is asked for each segment in turn: from the first
    one on that it refuses, trials are stopped.

    Raises:
        Interrupted, Terminated: the user asked the study to stop.
        EnvironmentProblem: ``same-failure``.
    """
    context.stop.check()
    context.store.add_trials(trials)
    _adopt_finished_trials(context, trials)
    with context.read() as reader:
        finished = reader.finished_ids()
        if not stage.test:  # a trial at its last step has yet to be scored
            finished |= set(reader.results_at_rung(stage.stop))
        costs, pauses = reader.costs(), reader.last_pause(stage.span)
        reused = set(reader.values(fork.TAKEN).get(fork.TAKEN, ()))
    trained_here = [trial for trial in trials if trial.id not in reused]
    todo = _plan_segments(context.study, trained_here, stage, finished, costs)
    todo = [_resume_from_pause(_drop_unresumable(s, finished), finished, pauses) for s in todo]
    # Longest first, so that no worker waits at the end. With a deadline the user's order decides
    # which methods may be left out.
    if context.deadline is None:
        todo.sort(key=lambda s: _expected_duration(s, costs), reverse=True)
    context.progress.phase(stage.title, len(trials), sum(t.id in finished for t in trials))
    crashes: Counter[str] = Counter()
    skipped: list[Segment] = []
    while todo:  # each batch leaves the segments that must be retried, in smaller parts
        todo, refused = _run_batch(context, todo, finished, may_start, crashes)
        skipped += refused
    _write_results(context, context.breaker.flush(), stage.span)
    context.stop.check()
    for trial in (t for s in skipped for t in s.trials if t.id not in finished):
        context.store.save(TrialResult(trial.id, Status.STOPPED, OUT_OF_TIME))
        context.progress.say(f"{trial.method.title} seed {trial.seed} {OUT_OF_TIME}")


def _adopt_finished_trials(context: RunContext, trials: Sequence[Trial]) -> None:
    """Add the missing database rows of finished trial folders."""
    for finding in repair.adopt_finished_trials(context.study.folder, context.store, trials):
        context.progress.say(f"{finding.what}: {finding.detail}")


def _plan_segments(
    study: Study,
    trials: Sequence[Trial],
    stage: Stage,
    finished: set[str],
    costs: Mapping[str, Cost],
) -> list[Segment]:
    """Return the segments of ``trials`` in which at least one trial is missing."""
    engines = {name: cost.engine for name, cost in costs.items()}
    limit = planning_trials.most_lanes(study.conditions.device, study.spec.engine.max_lanes)
    path, folder = study.base.path, str(study.folder)
    scored = _scores_validation(study, stage.stop)
    segments = planning_trials.build_segments(
        trials, stage.span, folder, path, engines, limit, scored
    )
    return [
        dataclasses.replace(s, test=stage.test, initial=s.trials[0].method.name == stage.initial)
        for s in segments
        if any(t.id not in finished for t in s.trials)
    ]


def _drop_unresumable(segment: Segment, finished: set[str]) -> Segment:
    """Return a segment without the finished trials that have no checkpoint at its start.

    A retried trial reaches a rung after the others of its group, whose checkpoints are deleted by
    then.
    """
    if segment.start == 0:
        return segment
    folder = Path(segment.folder) / TRIALS
    trials = tuple(
        t
        for t in segment.trials
        if t.id not in finished or trial_dir.checkpoint_path(folder, t.id, segment.start).is_file()
    )
    return dataclasses.replace(segment, trials=trials)


def _resume_from_pause(segment: Segment, finished: set[str], pauses: Mapping[str, int]) -> Segment:
    """Return a segment that resumes where its trials were paused between two rungs.

    ``pauses`` maps trial ids to steps. The segment stays as it is unless all missing trials paused
    at the same step and have a checkpoint there.
    """
    missing = tuple(t for t in segment.trials if t.id not in finished)
    steps = {pauses.get(t.id) for t in missing}
    step = steps.pop() if len(steps) == 1 else None
    if step is None:
        return segment
    folder = Path(segment.folder) / TRIALS
    if not all(trial_dir.checkpoint_path(folder, t.id, step).is_file() for t in missing):
        return segment
    return dataclasses.replace(segment, trials=missing, start=step)


def _run_batch(
    context: RunContext,
    todo: Sequence[Segment],
    finished: set[str],
    may_start: MayStart,
    crashes: Counter[str],
) -> tuple[list[Segment], list[Segment]]:
    """Run each segment once; return those to retry, and those that ``may_start`` refused.

    ``crashes`` counts the crashes of single trials across batches.
    """
    retries: list[Segment] = []
    submitted = 0

    def payloads() -> Iterator[dict[str, Any]]:
        nonlocal submitted
        # The executor pulls a payload only when a worker is free, so may_start is asked at the
        # time when the segment would start.
        for segment in takewhile(may_start, todo):
            submitted += 1
            context.progress.on_start(_segment_job(segment))
            yield segment.to_json()

    for outcome in context.executor.map(jobs.RUN_SEGMENT, payloads()):
        check_disk_full(context.study.folder, outcome)
        # takewhile yields a prefix of todo, so payload number i is segment number i
        assert outcome.index < submitted
        segment = todo[outcome.index]
        _exclude_gpu(context, segment, outcome)
        results = _segment_results(segment, outcome, crashes)
        if results is None:
            context.progress.say(_retry_message(segment, outcome))
            retries += _split_in_two(segment)
        else:
            pairs = list(zip(segment.trials, results, strict=True))
            group = [(t, r) for t, r in pairs if t.id not in finished]
            # a finished trial whose result at this rung was lost takes part in its race again
            context.store.save_group([r for t, r in pairs if t.id in finished and is_at_rung(r)])
            # the breaker may hold failures back until it is clear that they are the methods' own
            _write_results(context, context.breaker.record(group), (segment.start, segment.stop))
        context.progress.on_end(_segment_job(segment))
    refused = [] if context.stop() else list(todo[submitted:])
    return retries, refused


def is_at_rung(result: TrialResult) -> bool:
    """Return whether a trial has reached a rung, and nothing is decided about it."""
    return result.status is Status.STOPPED and result.reason is None


def _exclude_gpu(context: RunContext, segment: Segment, outcome: Outcome) -> None:
    """Stop using a GPU on which several methods crashed."""
    title, succeeded = segment.trials[0].method.title, outcome.value is not None
    methods = context.breaker.quarantine.record_outcome(
        outcome.gpu, title, outcome.gpu_lost, succeeded
    )
    if methods and outcome.gpu is not None and isinstance(context.executor, CanExcludeGpu):
        context.executor.exclude_gpu(outcome.gpu)
        context.progress.say(
            f"GPU {outcome.gpu} is disabled for this run: {' and '.join(methods)} crashed on it "
            "while other GPUs kept working. `nvidia-smi -q` shows its errors."
        )


def _segment_job(segment: Segment) -> Job:
    first, ids = segment.trials[0], tuple(t.id for t in segment.trials)
    name, title = first.method.name, first.method.title
    return Job(first.phase, name, title, ids, segment.start, segment.stop)


def _segment_results(
    segment: Segment, outcome: Outcome, crashes: Counter[str]
) -> list[TrialResult] | None:
    """Return a segment's results, or None if it must be retried."""
    if outcome.value is not None:
        return [TrialResult.from_json(value) for value in outcome.value["results"]]
    if len(segment.trials) > 1:
        return None
    (trial,) = segment.trials
    crashes[trial.id] += 1
    if crashes[trial.id] < MAX_CRASHES:
        return None
    reason = redact(outcome.error or "its worker returned no result")
    traceback = None if outcome.detail is None else redact(outcome.detail)
    return [TrialResult(trial.id, Status.FAILED, reason, traceback=traceback)]


def _split_in_two(segment: Segment) -> list[Segment]:
    trials, half = segment.trials, (len(segment.trials) + 1) // 2
    parts = [trials[:half], trials[half:]]
    return [dataclasses.replace(segment, trials=part) for part in parts if part]


def _retry_message(segment: Segment, outcome: Outcome) -> str:
    first, count = segment.trials[0], len(segment.trials)
    how = f"retrying {count} lanes in halves" if count > 1 else "retrying once"
    return f"{first.method.title}: {outcome.error}; {how}"


def _write_results(
    context: RunContext, group: Sequence[FinishedTrial], span: tuple[int, int]
) -> None:
    """Write a group's results, all or none, and delete the checkpoints of finished trials."""
    if not group:
        return
    context.store.save_group([r for _, r in group])
    for trial, result in group:
        if result.status is Status.STOPPED and result.step != span[1]:
            continue  # paused between two rungs: the trial has not finished
        context.progress.advance(
            f"{trial.method.name} lr {trial.learning_rate:g} seed {trial.seed}"
        )
        if result.status is not Status.STOPPED:
            study_folder.delete_checkpoints(context.study.folder, trial.id, before=None)
        if result.status not in (Status.DONE, Status.STOPPED):
            context.progress.say(f"{trial.method.title} {result.status.value}: {result.reason}")


def _expected_duration(segment: Segment, costs: Mapping[str, Cost]) -> float:
    """Return the relative duration of a segment: milliseconds of a common step of its lanes."""
    cost = costs.get(segment.trials[0].method.name)
    return (cost.step_milliseconds or 0.0) * cost.lanes_factor(len(segment.trials)) if cost else 0.0


def _scores_validation(study: Study, stop: int) -> bool:
    """Return whether trials at step ``stop`` are scored on validation by the metric as well.

    They are if settings are selected on the metric. Otherwise they are at their last step, if the
    metric costs no more than the loss: the report then shows whether both select the same.
    """
    if study.spec.budget.select_on == "metric":
        return True
    task = task_class(study.spec.task.kind)
    cheap: bool = task.scores_validation or study.metric.of_losses
    return cheap and stop >= study.conditions.steps


def check_disk_space(study: Study, costs: Mapping[str, Cost]) -> None:
    """Check that the disk has room for twice the trials' files: old and new versions coexist.

    Existing trial files count as free space.

    Raises:
        EnvironmentProblem: ``disk-space``, with the needed and the free space.
    """
    parameters = [c.trainable_parameters for c in costs.values() if c.trainable_parameters]
    lanes_free = are_lanes_free(costs.get(study.entries[0].name))
    looks = planned_looks(study.spec.budget, len(study.entries) - 1, lanes_free)
    needed = 2 * disk_bytes(study.spec, parameters, looks)
    trials = study.folder / TRIALS
    existing = sum(p.stat().st_size for p in trials.rglob("*") if p.is_file())
    free = shutil.disk_usage(study.folder).free
    if free + existing < needed:
        raise EnvironmentProblem(
            "disk-space",
            f"The study in {study.folder} may need {_format_mib(needed)} for adapters and "
            f"checkpoints, and {_format_mib(free)} are free there.",
            "free some disk space, use `--out DIR` on a larger disk, or ask for fewer settings, "
            "seeds or methods.",
        )


def _format_mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
