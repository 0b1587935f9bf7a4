"""Describe what a study would run, and estimate its time, without training (`bakeoff plan`)."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import jobs
from bakeoff.core.trial import Trial
from bakeoff.data.assets.cache import cache_folder
from bakeoff.data.issues import format_places
from bakeoff.methods.serving import serving_forms
from bakeoff.study.config import StudySpec
from bakeoff.study.executors import Options
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.planning import racing, time_budget
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.estimate import Timing, estimate
from bakeoff.study.planning.time_budget import BudgetPlan
from bakeoff.study.remote import is_remote, run_remote
from bakeoff.study.setup.open_study import add_warnings, check_study, open_study
from bakeoff.study.setup.study import CAUSAL_LM, Study, prior_trial, whole_segment
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.tasks import task_class


class MethodTimings(NamedTuple):
    """The timings of a study's methods, and the ``seconds`` that they took.

    ``untimed`` maps the methods that do not run here to the reason.
    """

    timings: tuple[Timing, ...]
    untimed: dict[str, str]
    seconds: float


def overview(
    spec: StudySpec,
    source: Path,
    progress: Progress | None = None,
    time_it: bool = False,
    show: int = 0,
) -> dict[str, Any]:
    """Return what a study would run; check everything that can be checked without training.

    ``detectable`` is the smallest true difference, in the metric's unit, that would be called
    better or worse in 80 % of such studies, at the published noise of scores of 0 and 1. With
    ``time_it``, or with a time budget, a few steps of each method are timed, and ``estimate`` is
    the time of the whole study. ``rows`` are the first ``show`` training rows as tokens.
    """
    progress = progress or Progress()
    has_hours = spec.budget.hours is not None
    study = open_study(spec, source, Path(), progress)
    with temporary_study_dir(study) as temporary:
        temporary = check_study(temporary, progress)
        study = temporary._replace(folder=study.folder)
        preview = preview_rows(temporary, show) if show else None
        timings = time_methods(temporary, progress) if time_it or has_hours else None
    plan = plan_budget(study, timings) if timings is not None and has_hours else None
    if plan is not None:
        study = apply_budget(study, plan)
    study = add_warnings(study, small_test_warning(study), progress)
    search = planning_trials.search_trials(study.spec, study.entries, study.conditions)
    settings = {t.method.name: t.setting for t in search}
    final = planning_trials.final_trials(study.spec, study.entries, study.conditions, settings)
    methods = _method_plans(study, search, final)
    steps = study.conditions.steps
    trials = len(search) + len(final)
    return {
        "name": spec.name,
        "n_items": study.splits.counts,
        "device": study.machine["device"],
        "precision": study.machine["precision"],
        **_memory_settings(study),
        "methods": methods,
        "trials": trials,
        "steps": trials * steps,
        **planning_trials.expected_work(study.spec, search, final, racing.KEEP)._asdict(),
        "rungs": list(planning_trials.rung_steps(study.spec.budget)),
        "margin": spec.task.margin,
        "detectable": time_budget.expected_detectable(
            study.splits.counts["test"],
            study.spec.budget.seeds,
            len(methods) - 1,
            study.metric.info,
        ),
        "hours": None if plan is None else dataclasses.asdict(plan),
        "estimate": None if timings is None else study_estimate(study, timings),
        "sizes": None if study.sizes is None else list(study.sizes),
        "chosen": dict(study.chosen),
        "data_notes": list(study.splits.notes),
        "columns_not_used": list(study.unused_columns),
        "rows": None if preview is None else preview["rows"],
        "added_tokens": None if preview is None else preview["added"],
        "warnings": list(study.warnings),
    }


def _memory_settings(study: Study) -> dict[str, Any]:
    """Return the settings by which the study saves memory."""
    c, engine = study.conditions, study.spec.engine
    return {
        "quantize": c.quantize,
        "quantizer": c.quantizer,
        "micro_tokens": engine.micro_tokens,
        "checkpointing": engine.checkpointing,
    }


def _method_plans(
    study: Study, search: Sequence[Trial], final: Sequence[Trial]
) -> list[dict[str, Any]]:
    """Return each method's trials, and the form in which vLLM could serve it (None: unknown)."""
    generates = task_class(study.spec.task.kind).task_type == CAUSAL_LM
    serving = serving_forms(study.entries, cache_folder()) if generates else {}
    methods = []
    for entry in study.entries:
        rates = [t.learning_rate for t in search if t.method.name == entry.name]
        n_final = sum(t.method.name == entry.name for t in final)
        methods.append(
            {
                "method": entry.name,
                "title": entry.title,
                "search_trials": len(rates),
                "final_trials": n_final,
                "steps": study.conditions.steps * (len(rates) + n_final),
                "learning_rates": rates,
                "vllm": serving.get(entry.name),
            }
        )
    return methods


@contextlib.contextmanager
def temporary_study_dir(study: Study) -> Iterator[Study]:
    """Yield the study in a temporary folder that holds its data.

    If other machines run it, the folder is created inside the study folder, which they can see.
    """
    parent = study.folder.resolve() if is_remote(study.spec) else None
    with tempfile.TemporaryDirectory(prefix=".bakeoff-", dir=parent) as name:
        study_folder.freeze_data(Path(name), study.splits)
        yield study._replace(folder=Path(name))


def preview_rows(study: Study, count: int) -> dict[str, Any]:
    """Return the first training ``rows`` as tokens, each with its place in the user's file.

    ``added`` is a sentence on the special tokens that the tokenizer adds, or None.
    The study's folder must hold its data.
    """
    segment = whole_segment(study, [prior_trial(study, study.entries[0])])
    request = {"segment": segment.to_json(), "count": count}
    preview = run_remote(study.executor(), jobs.PREVIEW_ROWS, request)
    rows = [
        {"where": format_places([study.splits.place("train", row["position"])], 1), **row}
        for row in preview["rows"]
    ]
    return {**preview, "rows": rows}


def time_methods(study: Study, progress: Progress) -> MethodTimings:
    """Time a few steps of each method, one at a time, each in a new process.

    The study's folder must hold its data.
    """
    settings, started = study.spec.budget.settings, time.monotonic()
    timings, untimed = [], {}
    switches = study.spec.engine.switches
    payloads = [
        whole_segment(study, [prior_trial(study, e)] * settings, switches).to_json()
        for e in study.entries
    ]
    progress.phase("Timing", len(payloads), 0)
    executor = study.exclusive_executor() or study.make_executor(
        "process", 1, Options(fresh_process=True)
    )
    for outcome in executor.map(jobs.TIME_STEPS, payloads):
        method = study.entries[outcome.index].name
        progress.advance(method)
        if outcome.value is None or outcome.value["error_text"] is not None:
            untimed[method] = (outcome.value or {}).get("error_text") or str(outcome.error)
        else:
            timings.append(Timing.from_measurement(method, outcome.value))
    return MethodTimings(tuple(timings), untimed, time.monotonic() - started)


def small_test_warning(study: Study) -> tuple[str, ...]:
    """Return a warning if test has too few items for the study's margin; else nothing."""
    return time_budget.small_margin_warnings(
        study.spec, study.splits.counts["test"], study.metric.info
    )


def study_estimate(study: Study, timings: MethodTimings) -> dict[str, Any]:
    """Return the estimated time of a study, as plain values."""
    total = estimate(study.spec, timings.timings, study.splits.counts)
    return {**dataclasses.asdict(total), "untimed": timings.untimed}


def plan_budget(study: Study, timings: MethodTimings) -> BudgetPlan:
    """Return the largest budget that fits the study's hours on this machine.

    Raises:
        PreflightError: ``hours-too-few``.
    """
    counts, metric = study.splits.counts, study.metric.info
    return time_budget.plan_budget(study.spec, timings.timings, counts, metric, timings.seconds)


def apply_budget(study: Study, plan: BudgetPlan) -> Study:
    """Return the study with the budget and the contenders of ``plan``."""
    budget = time_budget.BudgetChoice(plan.steps, plan.settings, plan.seeds, tuple(plan.contenders))
    spec = time_budget.with_budget(study.spec, budget)
    count = len(spec.method_names)  # contenders are dropped from the end of the list
    return study._replace(
        spec=spec,
        entries=study.entries[:count],
        conditions=dataclasses.replace(study.conditions, steps=plan.steps),
        sizes=None if study.sizes is None else study.sizes[:count],
    )
