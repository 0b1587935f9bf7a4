"""Open a study: resolve everything its file names, refuse what cannot work, train nothing.

Called by ``api`` at the start of the way: spec in, ``Study`` out. The training half is asked (for
the machine) only by name, through an executor.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from bakeoff.core import jobs
from bakeoff.core.errors import (
    PreflightError,
    UsageError,
    near_match,
)
from bakeoff.core.record import MetricInfo
from bakeoff.core.trial import Conditions, MethodEntry
from bakeoff.data import general_text as data_general_text
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.methods import forbidden_arguments, user_defined
from bakeoff.methods import registry as catalog
from bakeoff.metrics import load
from bakeoff.study.config import StudySpec
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.planning import trials
from bakeoff.study.remote import open_executor, run_remote
from bakeoff.study.setup import base_model
from bakeoff.study.setup import splits as setup_splits
from bakeoff.study.setup.study import CAUSAL_LM, ChosenMetric, Study, prior_trial, whole_segment
from bakeoff.study.setup.validate_data import (
    raise_fatal,
    report_warnings,
    validate_rows,
    warning_texts,
)
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.tasks import task_class


def open_study(spec: StudySpec, source: Path, out: Path, progress: Progress) -> Study:
    """Resolve everything that a study names: data, task, base, methods, machine.

    Raises:
        BakeoffError: whatever of it cannot work.
    """
    entries = load_methods(spec, source)
    task = task_class(spec.task.kind)
    metric = resolve_metric(spec, source)
    splits = setup_splits.read_splits(spec, source)
    splits = splits._replace(general=load_general_text(spec, task.task_type, source))
    options, faults = validate_rows(spec, source, task, splits)
    base = base_model.locate_base(spec.base.model, progress.say, spec.base.revision)
    trust = base_model.check_trust(base, spec.base)
    warnings = report_warnings(
        [*trust, *warning_texts(faults, splits), *trials.early_rung_warnings(spec.budget)], progress
    )
    if Path(base.path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local base asks no hub for anything
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wishes = spec.engine.model_dump(include={"device", "precision", "workers"})
    wishes["threads"] = spec.engine.threads_wished
    wishes |= spec.base.model_dump(include={"quantize", "quantizer"})
    machine = run_remote(open_executor(spec), jobs.DETECT_MACHINE, wishes)
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
        metric_source=None if metric.code is None else load.code_digest(metric.code),
    )
    opened = Study(
        spec, out, entries, conditions, base, machine, splits, warnings, source.resolve(), metric
    )
    return match_parameters(opened) if spec.budget.match == "parameters" else opened


def load_general_text(spec: StudySpec, task_type: str, source: Path) -> list[Row]:
    """Return the documents that forgetting is measured on; none where nothing says a next token.

    Raises:
        PreflightError: ``forgetting-not-for-task``, and what is wrong with the user's text.
    """
    wish = spec.forgetting.text
    if task_type == CAUSAL_LM:
        return data_general_text.load_documents(wish, source)
    if wish in (data_general_text.DEFAULT, data_general_text.OFF):
        return []
    raise PreflightError(
        "forgetting-not-for-task",
        f"[forgetting] text = '{wish}', but the task '{spec.task.kind}' trains a fresh output "
        "layer: there is no next-token loss that could change.",
        'leave [forgetting] out, or text = "off".',
    )


def resolve_metric(spec: StudySpec, source: Path) -> ChosenMetric:
    """Return the metric that a study names, its options checked; the task's own without one.

    Raises:
        UsageError: ``metric-not-for-task``, and whatever is wrong with options or file.
        EnvironmentProblem: ``metric-package-missing``.
    """
    known = task_class(spec.task.kind).metrics
    named = load.MetricSource.read(spec.task.metric or known[0], source)
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
    found = run_remote(open_executor(spec), jobs.DESCRIBE_METRIC, given)
    info = MetricInfo(**found["info"])
    return ChosenMetric(named.name, info, found["options"], found["of_losses"], code)


def check_study(study: Study, progress: Progress) -> Study:
    """Check methods, base and tokens in a worker; return the study with what is to be listed.

    Its data must lie in its folder.

    Raises:
        PreflightError: what the user must mend, all of it at once, with row numbers.
    """
    trials = [prior_trial(study, entry) for entry in study.entries]
    answer = run_remote(
        open_executor(study.spec), jobs.CHECK_STUDY, whole_segment(study, trials).to_json()
    )
    faults = [DataIssue.from_json(fault) for fault in answer["faults"]]
    raise_fatal(faults, study.splits)
    return add_warnings(study, warning_texts(faults, study.splits), progress)


def add_warnings(study: Study, warnings: Sequence[str], progress: Progress) -> Study:
    """Say the warnings that are new; return the study with them."""
    new = [warning for warning in warnings if warning not in study.warnings]
    return study._replace(warnings=study.warnings + report_warnings(new, progress))


def match_parameters(study: Study) -> Study:
    """Give every method the size that trains as many parameters as the control (or as asked)."""
    task = task_class(study.spec.task.kind)
    overrides = study.spec.method
    question = {
        "segment": whole_segment(study, [prior_trial(study, e) for e in study.entries]).to_json(),
        "task_type": task.task_type,
        "heads": list(task.heads),
        "target": study.spec.budget.parameters,
        "fixed": {name: list(override.config) for name, override in overrides.items()},
    }
    sizes = tuple(run_remote(open_executor(study.spec), jobs.MATCH_PARAMETERS, question)["sizes"])
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
        forbidden_arguments.check_arguments(entry.name, entry.config)
        forbidden_arguments.check_arguments(entry.name, entry.tuning)
        entries.append(entry)
    return tuple(entries)
