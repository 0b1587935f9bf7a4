"""What a study would run and take, and what its hours buy: `bakeoff plan`; trains nothing.

Called by ``api`` and the command line: opens the study, times a few steps of each method where
that is asked for, and hands the timings to ``estimate`` and ``hours``.
"""

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
from bakeoff.study.remote import (
    exclusive_executor,
    is_remote,
    make_executor,
    open_executor,
    run_remote,
)
from bakeoff.study.setup.open_study import add_warnings, check_study, open_study
from bakeoff.study.setup.study import CAUSAL_LM, Study, prior_trial, whole_segment
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.tasks import task_class


class MethodTimings(NamedTuple):
    """Timings of the methods that run here, ``untimed`` the others' reasons; ``seconds`` taken."""

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
    """Return what a study would run; checks everything that can be checked without training.

    ``detectable`` is the smallest true difference, in the metric's unit, that would be called
    better or worse in 80 % of such studies, at the noise that is published for scores of 0 and 1.
    With ``time_it``, or where the budget is in hours, a few steps of each method are timed, and
    ``estimate`` says what all of it takes. ``rows`` are the first ``show`` rows of train as tokens.
    """
    heard = progress or Progress()
    study = open_study(spec, source, Path(), heard)
    with temporary_study_dir(study) as there:
        study = check_study(there, heard)._replace(folder=study.folder)
        rows = preview_rows(there, show) if show else None
        found = time_methods(there, heard) if time_it or spec.budget.hours is not None else None
    bought = (
        plan_budget(study, found) if found is not None and spec.budget.hours is not None else None
    )
    if bought is not None:
        study = apply_budget(study, bought)
    study = add_warnings(study, small_test_warning(study), heard)
    search = planning_trials.search_trials(study.spec, study.entries, study.conditions)
    chosen = {t.method.name: t.setting for t in search}
    final = planning_trials.final_trials(study.spec, study.entries, study.conditions, chosen)
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
        "hours": None if bought is None else dataclasses.asdict(bought),
        "estimate": None if found is None else study_estimate(study, found),
        "sizes": None if study.sizes is None else list(study.sizes),
        "rows": rows,
        "warnings": list(study.warnings),
    }


def _memory_settings(study: Study) -> dict[str, Any]:
    """Return what the study does to fit in memory."""
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
    """Return what each method would run, and how vLLM could serve it (None: no way is known)."""
    speaks = task_class(study.spec.task.kind).task_type == CAUSAL_LM
    serving = serving_forms(study.entries, cache_folder()) if speaks else {}
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
    """Give the study in a temporary folder with its data, where nothing else is kept.

    Where other machines work on it, that lies beside or in the study folder: they see it there.
    """
    near = study.folder.resolve() if is_remote(study.spec) else None
    with tempfile.TemporaryDirectory(prefix=".bakeoff-", dir=near) as name:
        study_folder.freeze_data(Path(name), study.splits)
        yield study._replace(folder=Path(name))


def preview_rows(study: Study, count: int) -> list[dict[str, Any]]:
    """Return the first rows of train as they are trained on, and where they stand in the file.

    The study's data must lie in its folder.
    """
    asked = whole_segment(study, [prior_trial(study, study.entries[0])]).to_json()
    found = run_remote(
        open_executor(study.spec), jobs.PREVIEW_ROWS, {"segment": asked, "count": count}
    )["rows"]
    return [
        {"where": format_places([study.splits.place("train", row["position"])], 1), **row}
        for row in found
    ]


def time_methods(study: Study, progress: Progress) -> MethodTimings:
    """Time a few steps of each method, in processes of their own, one at a time.

    The study's data must lie in its folder.
    """
    settings, started = study.spec.budget.settings, time.monotonic()
    timings, untimed = [], {}
    wishes = study.spec.engine.switches
    payloads = [
        whole_segment(study, [prior_trial(study, e)] * settings, wishes).to_json()
        for e in study.entries
    ]
    progress.phase("Timing", len(payloads), 0)
    through = exclusive_executor(study.spec) or make_executor("process", 1, Options(fresh_process=True))
    for outcome in through.map(jobs.TIME_STEPS, payloads):
        method = study.entries[outcome.index].name
        progress.advance(method)
        if outcome.value is None or outcome.value["error_text"] is not None:
            untimed[method] = (outcome.value or {}).get("error_text") or str(outcome.error)
        else:
            timings.append(Timing.of(method, outcome.value))
    return MethodTimings(tuple(timings), untimed, time.monotonic() - started)


def small_test_warning(study: Study) -> tuple[str, ...]:
    """Say whether test has too few items for the study's margin."""
    return time_budget.small_margin_warnings(
        study.spec, study.splits.counts["test"], study.metric.info
    )


def study_estimate(study: Study, found: MethodTimings) -> dict[str, Any]:
    """Return what a study takes, as plain values."""
    taken = estimate(study.spec, found.timings, study.splits.counts)
    return {**dataclasses.asdict(taken), "untimed": found.untimed}


def plan_budget(study: Study, found: MethodTimings) -> BudgetPlan:
    """Return what the study's hours buy on this machine.

    Raises:
        PreflightError: ``hours-too-few``.
    """
    counts, metric = study.splits.counts, study.metric.info
    return time_budget.plan_budget(study.spec, found.timings, counts, metric, found.seconds)


def apply_budget(study: Study, bought: BudgetPlan) -> Study:
    """Return the study with the budget and the contenders that its hours buy."""
    budget = time_budget.BudgetChoice(
        bought.steps, bought.settings, bought.seeds, tuple(bought.contenders)
    )
    spec = time_budget.with_budget(study.spec, budget)
    count = len(spec.method_names)  # contenders leave from the end of the list
    return study._replace(
        spec=spec,
        warnings=study.warnings + planning_trials.early_rung_warnings(spec.budget),
        entries=study.entries[:count],
        conditions=dataclasses.replace(study.conditions, steps=spec.budget.steps),
        sizes=None if study.sizes is None else study.sizes[:count],
    )
