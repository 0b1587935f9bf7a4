"""Check whether a verdict depends on the learning rate of the task's new output layer.

After the rounds the control and one contender are trained at a third, at once and at three times of
that rate, at one seed, and scored on validation. No choice uses these trials, and they are no part
of the study's trials.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bakeoff.analysis.head_sensitivity import measure_shift
from bakeoff.core import jobs
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import HEAD_FACTOR, Segment, Trial
from bakeoff.study.monitoring.progress import Job, with_events
from bakeoff.study.record import load_report
from bakeoff.study.remote import check_disk_full, is_remote
from bakeoff.study.scheduler import RunContext
from bakeoff.study.setup import head_rate
from bakeoff.study.setup.study import Study, whole_segment
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.tasks import task_class

FACTORS = (1.0, 1 / 3, 3.0)
"""Factors on the output layer's rate; the first one is the study's own rate."""
OUT_OF_TIME = "the output layer's rate is not checked: the time budget is used up"


def check_head(context: RunContext) -> None:
    """Train the recommended or best contender and the control at other rates of the output layer.

    The shifts of their difference are stored under ``checked`` of ``head_rate.KEY``; a contender is
    checked once. Without time, or if a trial fails, there is no check.
    """
    study = context.study
    if not task_class(study.spec.task.kind).heads or not study.spec.verdict.check_head:
        return
    with context.read() as reader:
        stored = reader.values(head_rate.KEY).get(head_rate.KEY)
        trials = reader.summaries()
    if stored is None:
        return
    _, report = load_report(study.folder, examples=False)
    contender = contender_to_check(report)
    if contender is None or contender in stored.get("checked", {}):
        return
    settings = {row["method"]: row["setting"] for row in report["methods"]}
    names = (study.entries[0].name, contender)
    seconds = sum(
        max(
            (t.result.seconds for t in trials if t.result and t.trial.method.name == name),
            default=0,
        )
        for name in names
    )
    if context.deadline is not None and not context.deadline.allows(len(FACTORS) * seconds):
        context.progress.say(OUT_OF_TIME)
        return
    groups = [_trials_of(study, name, settings[name]) for name in names]
    scores = _validation_scores(context, groups)
    if scores is None:
        context.progress.say("the output layer's rate could not be checked: a trial failed")
        return
    control, own = scores[0], scores[1]
    shifts = [
        measure_shift(factor, (own[0], own[i]), (control[0], control[i])).to_json()
        for i, factor in enumerate(FACTORS)
        if i > 0
    ]
    checked = {**stored.get("checked", {}), contender: shifts}
    context.store.set(head_rate.KEY, {**stored, "checked": checked})


def contender_to_check(report: Mapping[str, Any]) -> str | None:
    """Return the recommended contender, else the best one; None if no contender was compared."""
    rows = [row for row in report["methods"] if row["difference"] and row["setting"]]
    control: Mapping[str, Any] = next(
        (r for r in report["methods"] if r["method"] == report["study"]["control"]), {}
    )
    if not rows or not control.get("setting"):
        return None
    recommended = report["recommendation"].get("method")
    sign = 1 if report["study"]["better"] == "higher" else -1
    best = max(rows, key=lambda row: sign * row["difference"]["estimate"])
    names = [row["method"] for row in rows]
    return recommended if recommended in names else str(best["method"])


def _trials_of(study: Study, name: str, setting: Mapping[str, Any]) -> list[Trial]:
    """Return a method's trials at the first replicate's seed, one for each factor."""
    entry = next(e for e in study.entries if e.name == name)
    own = setting.get(HEAD_FACTOR, 1.0)
    return [
        Trial(
            entry,
            {**setting, HEAD_FACTOR: own * factor},
            study.spec.seed + 1,
            "search",
            study.conditions,
        )
        for factor in FACTORS
    ]


def _validation_scores(
    context: RunContext, groups: list[list[Trial]]
) -> list[list[tuple[float, ...]]] | None:
    """Train each method's trials as lanes; return their validation scores, None if one failed."""
    study = context.study
    with context.read() as reader:
        costs = reader.costs()
    context.progress.phase("Output layer", len(groups), 0)
    found: list[list[tuple[float, ...]] | None] = [None] * len(groups)
    with _temporary_folder(study) as folder:
        segments = [
            _segment(study, group, folder, costs[group[0].method.name].engine) for group in groups
        ]
        probes = [
            Job("head check", g[0].method.name, g[0].method.title, tuple(t.id for t in g))
            for g in groups
        ]
        payloads = with_events(context.progress, probes, [s.to_json() for s in segments])
        for outcome in context.executor.map(jobs.RUN_SEGMENT, payloads):
            check_disk_full(study.folder, outcome)
            values = (outcome.value or {}).get("results") or []
            results = [TrialResult.from_json(value) for value in values]
            complete = len(results) == len(FACTORS)
            if complete and all(r.status is Status.DONE for r in results):
                found[outcome.index] = [r.splits["validation"].scores for r in results]
            context.progress.advance(probes[outcome.index].method)
            context.progress.on_end(probes[outcome.index])
    context.stop.check()
    scores = [group for group in found if group is not None]
    return scores if len(scores) == len(groups) else None


def _segment(
    study: Study, group: list[Trial], folder: Path, engine: dict[str, Any] | None
) -> Segment:
    segment = whole_segment(study, group, engine)
    return dataclasses.replace(segment, folder=str(folder), scored=True)


@contextmanager
def _temporary_folder(study: Study) -> Iterator[Path]:
    """Yield a folder with the study's data and metric, which all its machines can see."""
    parent = study.folder.resolve() if is_remote(study.spec) else None
    with TemporaryDirectory(prefix=".bakeoff-", dir=parent) as name:
        study_folder.freeze_data(Path(name), study.splits)
        study_folder.freeze_metric(Path(name), study.metric.name, study.metric.code)
        yield Path(name)
