"""Describe what a study would run, and estimate its time, without training (`bakeoff plan`)."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.analysis.group_variance import planned_design_effect
from bakeoff.analysis.promise import Promise
from bakeoff.core import jobs
from bakeoff.core.trial import Trial
from bakeoff.data.assets.cache import cache_folder
from bakeoff.data.issues import format_places
from bakeoff.methods.serving import serving_forms
from bakeoff.study.config import StudySpec
from bakeoff.study.executors import Options
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.planning import rounds, time_budget
from bakeoff.study.planning import trials as planning_trials
from bakeoff.study.planning.estimate import Price, Timing, estimate, price
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

    ``looks`` are the numbers of replicates after which the results are analysed. ``promise`` is
    what the study can show by the first and the last of them, at the published noise of scores of 0
    and 1; ``detectable`` is its difference at the last look, in the metric's unit. ``trials`` and
    ``steps`` count what runs if all methods go on to the last look. With ``time_it``, or with a
    time budget, a few steps of each method are timed, ``estimate`` is the time of the whole study,
    and ``price`` has seconds. ``rows`` are the first ``show`` training rows as tokens.
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
    looks = _planned_looks(study, timings)
    first_replicate = planning_trials.replicate_trials(
        study.spec, study.entries, planning_trials.replicate_seeds(study.spec, 1), study.conditions
    )
    return {
        "name": spec.name,
        "n_items": study.splits.counts,
        "device": study.machine["device"],
        "precision": study.machine["precision"],
        **_memory_settings(study),
        "methods": _method_plans(study, first_replicate),
        "looks": list(looks),
        "most_in_lanes": _most_in_lanes(study, timings),
        "settings": study.spec.budget.settings,
        "rungs": list(planning_trials.rung_steps(study.spec.budget)),
        "keep": list(study.spec.budget.keep),
        "margin": spec.task.margin,
        **_expected_results(study, looks, timings),
        "groups": _groups(study),
        "hours": None if plan is None else dataclasses.asdict(plan),
        "lanes": _lane_costs(study, timings),
        "estimate": None if timings is None else _study_estimate(study, timings, looks),
        "sizes": None if study.sizes is None else list(study.sizes),
        "chosen": dict(study.chosen),
        "data_notes": list(study.splits.notes),
        "columns_not_used": list(study.unused_columns),
        "rows": None if preview is None else preview["rows"],
        "added_tokens": None if preview is None else preview["added"],
        "warnings": list(study.warnings),
    }


def _expected_results(
    study: Study, looks: tuple[int, ...], timings: MethodTimings | None
) -> dict[str, Any]:
    """Return the work of a study up to its last look, its price, and what it can show."""
    promised = _promise(study, looks)
    trials = len(study.entries) * study.spec.budget.settings * looks[-1]
    prices = _prices(study, looks, timings, promised)
    return {
        "trials": trials,
        "steps": trials * study.conditions.steps,
        "steps_raced": round(prices["most"].runs * study.conditions.steps),
        "price": {name: dataclasses.asdict(price) for name, price in prices.items()},
        "promise": None if promised is None else _promise_values(promised),
        "detectable": None if promised is None else promised.last.detectable,
    }


def _planned_looks(study: Study, timings: MethodTimings | None) -> tuple[int, ...]:
    """Return the numbers of replicates at the study's looks.

    The run decides by the control's cost probe whether lanes are nearly free; a plan by its timed
    steps. Without them it assumes that they are not.
    """
    free = False
    if timings is not None and study.machine["device"] != "cpu":
        of_control = [t for t in timings.timings if t.method == study.entries[0].name]
        free = any(rounds.lanes_are_free(t.lanes_ratio, t.lanes_timed) for t in of_control)
    return rounds.planned_looks(study.spec.budget, len(study.entries) - 1, free)


def _lane_costs(study: Study, timings: MethodTimings | None) -> list[dict[str, Any]] | None:
    """Return how much longer a timed step of several lanes is than one of a single lane."""
    if timings is None:
        return None
    titles = {entry.name: entry.title for entry in study.entries}
    return [
        {"method": titles[t.method], "lanes": t.lanes_timed, "ratio": t.lanes_ratio}
        for t in timings.timings
        if t.lanes_timed > 1
    ]


def _most_in_lanes(study: Study, timings: MethodTimings | None) -> int | None:
    """Return the number of replicates if lanes are nearly free, where that is not known yet."""
    budget = study.spec.budget
    decided = budget.seeds != rounds.ROUNDS or budget.most is not None or timings is not None
    return None if decided or study.machine["device"] == "cpu" else rounds.MOST_IN_LANES


def _promise(study: Study, looks: tuple[int, ...]) -> Promise | None:
    """Return what the study can show, at the published noise of its kind of metric."""
    counts, metric = study.splits.counts, study.metric.info
    groups = None if study.groups is None else study.groups.array
    return time_budget.published_promise(study.spec, counts["test"], metric, looks, groups)


def _groups(study: Study) -> dict[str, Any] | None:
    """Return what the groups of test items are, and what they multiply the items' variance by."""
    if study.groups is None:
        return None
    effect = planned_design_effect(study.groups.array)
    return {
        "source": study.groups.source,
        "n": len(set(study.groups.numbers)),
        "design_effect": effect,
    }


def _promise_values(promised: Promise) -> dict[str, Any]:
    """Return a promise as plain values."""
    looks = {name: getattr(promised, name)._asdict() for name in ("first", "last")}
    return {**dataclasses.asdict(promised), **looks}


def _prices(
    study: Study,
    looks: tuple[int, ...],
    timings: MethodTimings | None,
    promised: Promise | None,
) -> dict[str, Price]:
    """Return the cost of the study up to the first look, as expected, and up to the last look.

    Expected is the longer of two cases: no contender differs, or all differ by what is detectable.
    Without a promise nothing is known of when a study ends.
    """
    replicates = {"first": (float(looks[0]),) * 2, "most": (float(looks[-1]),) * 2}
    if promised is not None:
        null = (promised.expected_null, promised.control_null)
        different = (promised.expected_detectable, promised.control_detectable)
        replicates["expected"] = max(null, different)
    timed = None if timings is None else timings.timings
    return {
        name: price(study.spec, timed, study.splits.counts, looks, counts)
        for name, counts in replicates.items()
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


def _method_plans(study: Study, first_replicate: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return each method's rates, and the form in which vLLM could serve it (None: unknown)."""
    generates = task_class(study.spec.task.kind).task_type == CAUSAL_LM
    serving = serving_forms(study.entries, cache_folder()) if generates else {}
    return [
        {
            "method": entry.name,
            "title": entry.title,
            "learning_rates": [
                t.learning_rate for t in first_replicate if t.method.name == entry.name
            ],
            "vllm": serving.get(entry.name),
        }
        for entry in study.entries
    ]


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

    The steps have one lane and as many as a replicate has settings; on a GPU at least a full group.
    The study's folder must hold its data.
    """
    lanes, started = study.spec.budget.settings, time.monotonic()
    on_cpu = study.machine["device"] == "cpu"
    most_lanes = planning_trials.most_lanes(study.machine["device"])
    lanes = lanes if on_cpu else max(lanes, most_lanes)
    lanes = min(lanes, study.spec.engine.max_lanes or lanes)
    timings, untimed = [], {}
    switches = study.spec.engine.switches
    payloads = [
        whole_segment(study, [prior_trial(study, e)] * lanes, switches).to_json()
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
            timings.append(Timing.from_measurement(method, outcome.value, most_lanes))
    return MethodTimings(tuple(timings), untimed, time.monotonic() - started)


def small_test_warning(study: Study) -> tuple[str, ...]:
    """Return a warning if test has too few items for the study's margin; else nothing."""
    n_test, margin = study.splits.counts["test"], study.spec.task.margin
    return time_budget.small_margin_warnings(
        _promise(study, _planned_looks(study, None)), n_test, margin
    )


def _study_estimate(study: Study, timings: MethodTimings, looks: tuple[int, ...]) -> dict[str, Any]:
    """Return the estimated time of a study up to its last look, as plain values."""
    total = estimate(study.spec, timings.timings, study.splits.counts, looks)
    return {**dataclasses.asdict(total), "untimed": timings.untimed}


def plan_budget(study: Study, timings: MethodTimings) -> BudgetPlan:
    """Return the largest budget that fits the study's hours on this machine.

    Raises:
        PreflightError: ``hours-too-few``.
    """
    counts, metric = study.splits.counts, study.metric.info
    groups = None if study.groups is None else study.groups.array
    return time_budget.plan_budget(
        study.spec, timings.timings, counts, metric, timings.seconds, groups
    )


def apply_budget(study: Study, plan: BudgetPlan) -> Study:
    """Return the study with the budget and the contenders of ``plan``."""
    budget = time_budget.BudgetChoice(
        plan.steps, plan.settings, tuple(plan.looks), tuple(plan.contenders)
    )
    spec = time_budget.with_budget(study.spec, budget)
    count = len(spec.method_names)  # contenders are dropped from the end of the list
    return study._replace(
        spec=spec,
        entries=study.entries[:count],
        conditions=dataclasses.replace(study.conditions, steps=plan.steps),
        sizes=None if study.sizes is None else study.sizes[:count],
    )
