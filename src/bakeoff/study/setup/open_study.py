"""Open a study: resolve everything its file names, refuse what cannot work, train nothing.

Called by ``api`` at the start of the way: spec in, ``Study`` out. The training half is asked (for
the machine) only by name, through an executor.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import disk_full, plugins
from bakeoff.core.errors import (
    BakeoffError,
    EnvironmentProblem,
    PreflightError,
    UsageError,
    near_match,
)
from bakeoff.core.redact import redact
from bakeoff.core.results import MetricInfo
from bakeoff.core.trial import LEARNING_RATE, Conditions, MethodEntry, Segment, Trial
from bakeoff.data import general_text as data_general_text
from bakeoff.data.issues import Fault
from bakeoff.data.rows import Row
from bakeoff.methods import forbidden_arguments, user_defined
from bakeoff.methods import registry as catalog
from bakeoff.metrics import describe
from bakeoff.study.config import StudySpec
from bakeoff.study.executors import Executor, Options, Outcome, never
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.planning import trials
from bakeoff.study.setup import base_model
from bakeoff.study.setup.validate_data import examine, listed, refuse, said
from bakeoff.study.storage import study_dir as study_folder

RUN_MACHINE = "bakeoff.training.preflight.checks:machine"
RUN_CHECK = "bakeoff.training.preflight.checks:check"
RUN_MATCH = "bakeoff.training.preflight.parameter_count:match"
RUN_METRIC = "bakeoff.metrics.describe:describe"
CAUSAL_LM = "CAUSAL_LM"
"""PEFT's name for the models whose every position says the next token."""


class ChosenMetric(NamedTuple):
    """A study's metric: its name and what it is, its options, and the code of the user's own."""

    name: str
    info: MetricInfo
    options: dict[str, Any]
    of_losses: bool
    code: bytes | None


class Study(NamedTuple):
    """An opened study: everything resolved, nothing trained."""

    spec: StudySpec
    folder: Path
    entries: tuple[MethodEntry, ...]
    conditions: Conditions
    base: base_model.Base
    machine: dict[str, Any]
    splits: study_folder.Splits
    warnings: tuple[str, ...]
    source: Path
    metric: ChosenMetric
    sizes: tuple[dict[str, Any], ...] | None = None
    """Each method's size, where the study wants equal trainable parameters."""


def open_study(spec: StudySpec, source: Path, out: Path, progress: Progress) -> Study:
    """Resolve everything that a study names: data, task, base, methods, machine.

    Raises:
        BakeoffError: whatever of it cannot work.
    """
    entries = load_methods(spec, source)
    task = plugins.find("tasks", spec.task.kind).TASK
    metric = chosen_metric(spec, source)
    splits = study_folder.read_splits(spec, source)
    splits = splits._replace(general=general_text(spec, task.task_type, source))
    options, faults = examine(spec, source, task, splits)
    base = base_model.locate(spec.base.model, progress.say, spec.base.revision)
    trust = base_model.consent(base, spec.base)
    warnings = said([*trust, *listed(faults, splits), *trials.early_rungs(spec.budget)], progress)
    if Path(base.path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local base asks no hub for anything
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wishes = spec.engine.model_dump(include={"device", "precision", "workers"})
    wishes["threads"] = spec.engine.threads_wished
    wishes |= spec.base.model_dump(include={"quantize", "quantizer"})
    machine = call(executor(spec), RUN_MACHINE, wishes)
    conditions = Conditions(
        base=base.published_as,
        revision=base.commit or spec.base.revision,
        task=spec.task.kind,
        task_options=options,
        metric=metric.name,
        data=study_folder.digests(splits),
        steps=spec.budget.steps,
        batch_size=spec.budget.batch_size,
        evaluation_batch_size=spec.engine.evaluation_batch_size,
        warmup=spec.budget.warmup,
        decay=spec.budget.decay,
        weight_decay=spec.budget.weight_decay,
        clip=spec.budget.clip,
        head_learning_rate=spec.task.head_learning_rate,
        validations=spec.budget.validations,
        device=machine["device"],
        precision=machine["precision"],
        threads=machine["threads"],
        fingerprint=base.fingerprint,
        quantize=spec.base.quantize,
        quantizer=machine["quantizer"],
        metric_options=metric.options,
        general_length=spec.forgetting.max_length if splits.general else None,
        trusted=spec.base.trust_remote_code,
        metric_source=None if metric.code is None else describe.digest(metric.code),
    )
    opened = Study(
        spec, out, entries, conditions, base, machine, splits, warnings, source.resolve(), metric
    )
    return matched(opened) if spec.budget.match == "parameters" else opened


def general_text(spec: StudySpec, task_type: str, source: Path) -> list[Row]:
    """Return the documents that forgetting is measured on; none where nothing says a next token.

    Raises:
        PreflightError: ``forgetting-not-for-task``, and what is wrong with the user's text.
    """
    wish = spec.forgetting.text
    if task_type == CAUSAL_LM:
        return data_general_text.documents(wish, source)
    if wish in (data_general_text.DEFAULT, data_general_text.OFF):
        return []
    raise PreflightError(
        "forgetting-not-for-task",
        f"[forgetting] text = '{wish}', but the task '{spec.task.kind}' trains a fresh output "
        "layer: there is no next-token loss that could change.",
        'leave [forgetting] out, or text = "off".',
    )


def chosen_metric(spec: StudySpec, source: Path) -> ChosenMetric:
    """Return the metric that a study names, its options checked; the task's own without one.

    Raises:
        UsageError: ``metric-not-for-task``, and whatever is wrong with options or file.
        EnvironmentProblem: ``metric-package-missing``.
    """
    known = plugins.find("tasks", spec.task.kind).TASK.metrics
    named = describe.Source.read(spec.task.metric or known[0], source)
    if named.file is None and named.name not in known:
        near = near_match(named.name, known)
        hint = f"did you mean '{near}'? " if near else ""
        raise UsageError(
            "metric-not-for-task",
            f"The task '{spec.task.kind}' has no metric '{named.name}'.",
            f'{hint}One of: {", ".join(known)}; or a function of yours: "score.py:score".',
        )
    code = named.code()
    given = {
        "metric": spec.task.metric or known[0],
        "options": spec.task.metric_options,
        "folder": str(source),
    }
    # where the executor works: a function of the user's own runs there too
    found = call(executor(spec), RUN_METRIC, given)
    info = MetricInfo(**found["info"])
    return ChosenMetric(named.name, info, found["options"], found["of_losses"], code)


def check(study: Study, progress: Progress) -> Study:
    """Check methods, base and tokens in a worker; return the study with what is to be listed.

    Its data must lie in its folder.

    Raises:
        PreflightError: what the user must mend, all of it at once, with row numbers.
    """
    trials = [prior_trial(study, entry) for entry in study.entries]
    answer = call(executor(study.spec), RUN_CHECK, segment(study, trials).to_json())
    faults = [Fault.from_json(fault) for fault in answer["faults"]]
    refuse(faults, study.splits)
    return warned(study, listed(faults, study.splits), progress)


def warned(study: Study, warnings: Sequence[str], progress: Progress) -> Study:
    """Say the warnings that are new; return the study with them."""
    new = [warning for warning in warnings if warning not in study.warnings]
    return study._replace(warnings=study.warnings + said(new, progress))


def matched(study: Study) -> Study:
    """Give every method the size that trains as many parameters as the control (or as asked)."""
    task = plugins.find("tasks", study.spec.task.kind).TASK
    overrides = study.spec.method
    question = {
        "segment": segment(study, [prior_trial(study, e) for e in study.entries]).to_json(),
        "task_type": task.task_type,
        "heads": list(task.heads),
        "target": study.spec.budget.parameters,
        "fixed": {name: list(override.config) for name, override in overrides.items()},
    }
    sizes = tuple(call(executor(study.spec), RUN_MATCH, question)["sizes"])
    entries = []
    for entry, size in zip(study.entries, sizes, strict=True):
        if size["value"] is not None:
            config = {**entry.config, size["argument"]: size["value"]}
            entry = dataclasses.replace(entry, config=config)
        entries.append(entry)
    return study._replace(entries=tuple(entries), sizes=sizes)


def load_methods(spec: StudySpec, source: Path) -> tuple[MethodEntry, ...]:
    """Return the study's methods, control first, with the user's arguments over the catalog's."""
    entries = []
    for name in spec.method_names:
        own = spec.method.get(name)
        if own is not None and own.path is not None:
            entry = user_defined.from_file(name, source / own.path)
        elif own is not None and own.peft is not None:
            entry = user_defined.from_class(name, own.peft, own.config)
        else:
            entry = catalog.load(name, source)
        override = spec.method.get(entry.name)
        if override:
            entry = dataclasses.replace(entry, config={**entry.config, **override.config})
        forbidden_arguments.check(entry.name, entry.config)
        forbidden_arguments.check(entry.name, entry.tuning)
        entries.append(entry)
    return tuple(entries)


def frozen_values(study: Study) -> dict[str, Any]:
    """Return what must not change between the first run of a study and any later one."""
    template = (study.conditions.task_options.get("chat") or {}).get("template")
    return {
        "spec": study_folder.comparable(study.spec),
        "data": study.conditions.data,
        "base": study.base.fingerprint,
        "machine": study.machine,
        "methods": {e.name: dataclasses.asdict(e) for e in study.entries},
        "metric": {
            "name": study.conditions.metric,
            "options": study.conditions.metric_options,
            "source": study.conditions.metric_source,
        },
        "chat_template": None if template is None else describe.digest(template.encode()),
    }


def about(study: Study) -> dict[str, Any]:
    """Return what the report must know of a study beside its trials."""
    task = plugins.find("tasks", study.conditions.task).TASK
    references = []
    if task.secondary:
        references = task(study.conditions.task_options).references(study.splits.rows["test"])
    return {
        "secondary": list(task.secondary),
        "references": references,
        "base_note": study.base.note,
        "metric": dataclasses.asdict(study.metric.info),
        "titles": {e.name: e.title for e in study.entries},
        "methods": [e.name for e in study.entries],
        "n_items": study.splits.counts,
        "warnings": list(study.warnings),
        "sizes": None if study.sizes is None else list(study.sizes),
        "provenance": {
            "versions": study.machine["versions"],
            "device": study.machine["device"],
            "hardware": study.machine["hardware"],
            "precision": study.machine["precision"],
            "threads": study.machine["threads"],
            "base": {
                "model": study.spec.base.model,
                "published_as": study.base.published_as,
                "fingerprint": study.base.fingerprint,
                "quantize": study.conditions.quantize,
                "quantizer": study.conditions.quantizer,
            },
            "data": study.conditions.data,
            "data_from": study.splits.origins,
            "git": git_state(study.source),
            "command": redact(" ".join(["bakeoff", *sys.argv[1:]])),
            "study_file": study_folder.STUDY_FILE,
        },
    }


def segment(study: Study, trials: Sequence[Trial], engine: dict[str, Any] | None = None) -> Segment:
    """Return the segment of ``trials`` over the whole budget."""
    steps = study.conditions.steps
    return Segment(tuple(trials), 0, steps, str(study.folder), study.base.path, engine)


def prior_trial(study: Study, entry: MethodEntry) -> Trial:
    """Return a method's trial at its prior learning rate: what is checked and probed."""
    setting = {LEARNING_RATE: entry.learning_rate}
    return Trial(entry, setting, study.spec.seed, "search", study.conditions)


def executor(spec: StudySpec, stopping: Callable[[], bool] = never) -> Executor:
    """Return the study's executor, which takes no more work from ``stopping`` on."""
    return make_executor(spec.engine.executor, spec.engine.workers, _options(spec, stopping))


def works_elsewhere(spec: StudySpec) -> bool:
    """Say whether the study's executor may work on other machines than this one."""
    kind = plugins.find("executors", spec.engine.executor).EXECUTOR
    return bool(getattr(kind, "elsewhere", False))


def prober(spec: StudySpec, stopping: Callable[[], bool] = never) -> Executor | None:
    """Return what measures one method after another where the trials run: a process each, alone.

    None where that is this machine.
    """
    if not works_elsewhere(spec):
        return None
    alone = dataclasses.replace(_options(spec, stopping), fresh=True)
    return make_executor(spec.engine.executor, 1, alone)


def _options(spec: StudySpec, stopping: Callable[[], bool]) -> Options:
    engine = spec.engine
    return Options(
        patience=60 * engine.patience,
        spread=engine.device in ("auto", "cuda"),
        stopping=stopping,
        engine=engine.model_dump(),
    )


def make_executor(name: str, workers: int, options: Options = Options()) -> Executor:  # noqa: B008  # frozen
    """Return the executor called ``name``."""
    made: Executor = plugins.find("executors", name).EXECUTOR(workers, options)
    return made


def call(through: Executor, function: str, value: dict[str, Any]) -> dict[str, Any]:
    """Run one function through an executor and return its answer.

    Raises:
        PreflightError: what the function refuses, under ``error`` in its answer.
        EnvironmentProblem: the same, where the machine lacks something.
        UsageError: the same, where the study file is wrong.
        BakeoffError: ``worker-failed`` with the worker's last words.
    """
    outcome = next(iter(through.map(function, [value])))
    refuse_full(Path(value.get("folder") or Path.cwd()), outcome)
    if outcome.value is None:
        raise BakeoffError(
            "worker-failed", f"{function}: {outcome.error}", "`bakeoff doctor` checks the machine."
        )
    refused = outcome.value.get("error")
    if refused is not None:
        kinds = {kind.exit_code: kind for kind in (EnvironmentProblem, UsageError)}
        kind = kinds.get(refused.get("exit"), PreflightError)
        raise kind(refused["code"], refused["cause"], refused["try"])
    return outcome.value


def refuse_full(folder: Path, outcome: Outcome) -> None:
    """Pause the study where a worker met a full disk: no trial, cost or score comes of that.

    Raises:
        EnvironmentProblem: ``disk-full``.
    """
    said = (outcome.value or {}).get("disk_full")
    if said is None and outcome.error is not None and disk_full.says_full(outcome.error):
        said = outcome.error
    if said is not None:
        raise disk_full.paused(folder, said)


def git_state(source: Path) -> dict[str, Any] | None:
    """Return commit and dirtiness of the repository around the study file, None without one.

    ``dirty`` is None where the repository's own configuration names programs that looking for
    changes would run: it may have come with a study of somebody else's.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(source), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace")
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        names = git("config", "--local", "--includes", "--name-only", "--list").lower().split()
        runs = any(n.startswith("filter.") or n == "core.fsmonitor" for n in names)
        return {"commit": commit, "dirty": None if runs else bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
