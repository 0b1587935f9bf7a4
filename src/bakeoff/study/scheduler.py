"""Rounds of segments through the executor: each result is written as soon as it is there.

Called by ``phases``. A segment whose worker died is carried again, in halves, before any trial is
called failed; the same failure method after method pauses the study; a wish to stop ends the round
with the trials' states kept.
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
from bakeoff.study.monitoring.progress import Job, Progress, begun, ended
from bakeoff.study.monitoring.signals import StopRequest
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.estimate import disk_bytes
from bakeoff.study.planning.time_budget import Deadline
from bakeoff.study.remote import check_disk_full
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import repair
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.tasks import task_class

OUT_OF_TIME = "not begun: the study's hours would have been over before its end"
MAX_CRASHES = 2
"""How often a trial may be alone in a worker that dies before it counts as failed: what killed the
first may have been another program's hunger."""


class RunContext(NamedTuple):
    """A study at work: what every phase needs."""

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
    running: RunContext,
    title: str,
    trials: Sequence[Trial],
    span: tuple[int, int],
    begins: Callable[[Segment], bool] = lambda _: True,
) -> None:
    """Train what is missing of ``trials`` over ``span``.

    A group of which some are missing is trained as a whole, so that a resumed study computes what
    an uninterrupted one does; what was there stays. What a fork has from its parent belongs to no
    group. From the first group on that may not begin, trials are stopped.

    Raises:
        Interrupted, Terminated: the study was asked to stop.
        EnvironmentProblem: ``same-failure``.
    """
    running.stop.check()
    running.store.add_trials(trials)
    taken = _adopt_finished_trials(running, title, trials)
    with running.read() as reader:
        there = reader.finished_ids() | set(reader.results_at_rung(span[1]))
        costs, stands = reader.costs(), reader.last_pause(span)
    own = [trial for trial in trials if trial.id not in taken]
    todo = _plan_segments(running.study, own, span, there, costs)
    todo = [_resume_from_pause(_drop_unresumable(s, there), there, stands) for s in todo]
    if running.deadline is None:  # with one, the user's order says who may go without
        todo.sort(key=lambda s: _expected_duration(s, costs), reverse=True)
    running.progress.phase(title, len(trials), sum(t.id in there for t in trials))
    deaths: Counter[str] = Counter()
    late: list[Segment] = []
    while todo:
        todo, left = _run_batch(running, todo, there, begins, deaths)
        late += left
    _write_results(running, running.breaker.flush(), span)
    running.stop.check()
    for trial in (t for s in late for t in s.trials if t.id not in there):
        running.store.save(TrialResult(trial.id, Status.STOPPED, OUT_OF_TIME))
        running.progress.say(f"{trial.method.title} seed {trial.seed} {OUT_OF_TIME}")


def _adopt_finished_trials(running: RunContext, title: str, trials: Sequence[Trial]) -> set[str]:
    """Write the rows of trials that are finished in their folders; return those of a parent."""
    out, store = running.study.folder, running.store
    if running.parent is not None:
        count = fork.reuse_trials(running.parent, out, store, trials)
        if count:
            running.progress.say(
                f"{title}: {count} finished trials are taken over from {running.parent.name}"
            )
    for found in repair.adopt_finished_trials(out, store, trials):
        running.progress.say(f"{found.what}: {found.detail}")
    with running.read() as reader:
        return set(reader.values(fork.TAKEN).get(fork.TAKEN, ()))


def _plan_segments(
    study: Study, trials: Sequence[Trial], span: tuple[int, int], there: set[str],
    costs: Mapping[str, Cost],
) -> list[Segment]:  # fmt: skip
    engines = {name: cost.engine for name, cost in costs.items()}
    limit, path, folder = study.spec.engine.most_lanes, study.base.path, str(study.folder)
    found = planning_trials.build_segments(
        trials, span, folder, path, engines, limit, _scores_validation(study, span[1])
    )
    return [s for s in found if any(t.id not in there for t in s.trials)]


def _drop_unresumable(segment: Segment, there: set[str]) -> Segment:
    """Return a segment without the trials that are there and cannot start with it any more.

    A trial that is tried again comes late to a rung: the states of its group were removed.
    """
    if segment.start == 0:
        return segment
    folder = Path(segment.folder) / TRIALS
    trials = tuple(
        t for t in segment.trials
        if t.id not in there or trial_dir.checkpoint_path(folder, t.id, segment.start).is_file()
    )  # fmt: skip
    return dataclasses.replace(segment, trials=trials)


def _resume_from_pause(segment: Segment, there: set[str], stands: Mapping[str, int]) -> Segment:
    """Return a segment that goes on where its trials were stopped between two rungs."""
    missing = tuple(t for t in segment.trials if t.id not in there)
    steps = {stands.get(t.id) for t in missing}
    step = steps.pop() if len(steps) == 1 else None
    if step is None:
        return segment
    states = (trial_dir.checkpoint_path(Path(segment.folder) / TRIALS, t.id, step) for t in missing)
    if not all(state.is_file() for state in states):
        return segment
    return dataclasses.replace(segment, trials=missing, start=step)


def _run_batch(
    running: RunContext, todo: Sequence[Segment], there: set[str], begins: Callable[[Segment], bool],
    deaths: Counter[str],
) -> tuple[list[Segment], list[Segment]]:  # fmt: skip
    """Carry segments; return those to carry again, and those that may not begin any more."""
    taken: list[Segment] = []
    again: list[Segment] = []

    def payloads() -> Iterator[dict[str, Any]]:
        for group in takewhile(begins, todo):
            taken.append(group)
            begun(running.progress, _segment_job(group))
            yield group.to_json()

    for outcome in running.executor.map(jobs.RUN_SEGMENT, payloads()):
        check_disk_full(running.study.folder, outcome)
        segment = taken[outcome.index]
        _exclude_gpu(running, segment, outcome)
        results = _segment_results(segment, outcome, deaths)
        if results is None:
            running.progress.say(_retry_message(segment, outcome))
            again += _split_in_two(segment)
        else:
            pairs = zip(segment.trials, results, strict=True)
            group = [(t, r) for t, r in pairs if t.id not in there]
            _write_results(running, running.breaker.take(group), (segment.start, segment.stop))
        ended(running.progress, _segment_job(segment))
    late = [] if running.stop() else list(todo[len(taken) :])
    return again, late


def _exclude_gpu(running: RunContext, segment: Segment, outcome: Outcome) -> None:
    """Do without a GPU that one method after the other has lost."""
    title, went_well = segment.trials[0].method.title, outcome.value is not None
    methods = running.breaker.gpus.heard(outcome.gpu, title, outcome.gpu_lost, went_well)
    if methods and outcome.gpu is not None and isinstance(running.executor, CanExcludeGpu):
        running.executor.exclude_gpu(outcome.gpu)
        running.progress.say(
            f"GPU {outcome.gpu} is set aside until the next run: {' and '.join(methods)} lost it, "
            "while work went on elsewhere. `nvidia-smi -q` shows its errors."
        )


def _segment_job(segment: Segment) -> Job:
    first, ids = segment.trials[0], tuple(t.id for t in segment.trials)
    name, title = first.method.name, first.method.title
    return Job(first.phase, name, title, ids, segment.start, segment.stop)


def _segment_results(
    segment: Segment, outcome: Outcome, deaths: Counter[str]
) -> list[TrialResult] | None:
    """Return what a segment gave; None where it is to be carried again."""
    if outcome.value is not None:
        return [TrialResult.from_json(value) for value in outcome.value["results"]]
    if len(segment.trials) > 1:
        return None
    (trial,) = segment.trials
    deaths[trial.id] += 1
    if deaths[trial.id] < MAX_CRASHES:
        return None
    reason = redact(outcome.error or "its worker gave no answer")
    words = None if outcome.detail is None else redact(outcome.detail)
    return [TrialResult(trial.id, Status.FAILED, reason, traceback=words)]


def _split_in_two(segment: Segment) -> list[Segment]:
    trials, half = segment.trials, (len(segment.trials) + 1) // 2
    parts = [trials[:half], trials[half:]]
    return [dataclasses.replace(segment, trials=part) for part in parts if part]


def _retry_message(segment: Segment, outcome: Outcome) -> str:
    first, count = segment.trials[0], len(segment.trials)
    how = f"{count} lanes, now in halves" if count > 1 else "now once more"
    return f"{first.method.title}: {outcome.error}; {how}"


def _write_results(
    running: RunContext, group: Sequence[FinishedTrial], span: tuple[int, int]
) -> None:
    """Write results, a group's all or none, and remove the states they went on from."""
    if not group:
        return
    running.store.save_group([r for _, r in group])
    for trial, result in group:
        if result.status is Status.STOPPED and result.step != span[1]:
            continue  # paused: nothing has ended
        running.progress.advance(
            f"{trial.method.name} lr {trial.learning_rate:g} seed {trial.seed}"
        )
        if result.status is not Status.STOPPED:
            study_folder.delete_checkpoints(running.study.folder, trial.id, but=None)
        if result.status not in (Status.DONE, Status.STOPPED):
            running.progress.say(f"{trial.method.title} {result.status.value}: {result.reason}")


def _expected_duration(group: Segment, costs: Mapping[str, Cost]) -> float:
    """Return about how long a segment takes: with the longest first no worker waits at the end."""
    cost = costs.get(group.trials[0].method.name)
    return (cost.step_milliseconds or 0.0) * len(group.trials) if cost else 0.0


def _scores_validation(study: Study, stop: int) -> bool:
    """Say whether search trials that stop here are scored by the metric, not by their loss alone.

    Wherever the metric decides; else where settings are chosen, if the metric costs no more than
    the loss, so that the report can tell whether the two would have chosen the same.
    """
    if study.spec.budget.select_on == "metric":
        return True
    stops = planning_trials.rung_steps(study.spec.budget)
    task = task_class(study.spec.task.kind)
    cheap: bool = task.scores_validation or study.metric.of_losses
    return cheap and (not stops or stop >= stops[-1])


def check_disk_space(study: Study, costs: Mapping[str, Cost]) -> None:
    """Refuse to train where the trials' files would not fit twice: old and new ones meet.

    What lies in the study's folder already counts as room.

    Raises:
        EnvironmentProblem: ``disk-space``, with what is needed and what is free.
    """
    trained = [c.trainable_parameters for c in costs.values() if c.trainable_parameters]
    wanted = 2 * disk_bytes(study.spec, trained)
    trials = study.folder / TRIALS
    there = sum(p.stat().st_size for p in trials.rglob("*") if p.is_file())
    free = shutil.disk_usage(study.folder).free
    if free + there < wanted:
        raise EnvironmentProblem(
            "disk-space",
            f"The study in {study.folder} may need {_mib(wanted)} for adapters and states, and "
            f"{_mib(free)} are free there.",
            "make room, `--out DIR` on a larger disk, or fewer settings, seeds or methods.",
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
