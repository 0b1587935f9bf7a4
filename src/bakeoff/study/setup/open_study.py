"""Open a study: resolve data, task, base model, methods and machine; train nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from bakeoff.data.splits import Splits
from bakeoff.metrics import load
from bakeoff.study.config import StudySpec
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.planning.learning_rates import centre_note, centre_rate
from bakeoff.study.remote import ExecutorFactory, make_executor, open_executor, run_remote
from bakeoff.study.setup import base_model, defaults, saved_rate
from bakeoff.study.setup import splits as setup_splits
from bakeoff.study.setup.item_groups import find_item_groups
from bakeoff.study.setup.methods import load_methods, restore_methods
from bakeoff.study.setup.study import CAUSAL_LM, ChosenMetric, Study, prior_trial, whole_segment
from bakeoff.study.setup.validate_data import (
    raise_fatal,
    report_warnings,
    validate_rows,
    warning_texts,
)
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.tasks import task_class
from bakeoff.tasks._base import HEAD

MENDED = ("end-token-written", "begin-token-written", "special-tokens-kept")
"""Issues of which nothing has to be done: one line says what was made of them."""


def open_study(
    spec: StudySpec,
    source: Path,
    out: Path,
    progress: Progress,
    make_executor: ExecutorFactory = make_executor,
) -> Study:
    """Resolve everything that a study names: data, task, base, methods, machine.

    ``source`` is the folder that relative paths start from, ``out`` the study folder.

    Raises:
        BakeoffError: something in the study cannot work.
    """
    entries = load_methods(spec, source)
    task = task_class(spec.task.kind)
    metric = resolve_metric(spec, source, make_executor)
    splits = setup_splits.split_turns(spec, task, setup_splits.read_splits(spec, source))
    splits = splits._replace(general=load_general_text(spec, task.task_type, source))
    options, issues = validate_rows(spec, source, task, splits)
    base = base_model.locate_base(spec.base.model, progress.say, spec.base.revision)
    options, head_issues = add_head(spec, base, options, out, make_executor)
    groups, group_issues = find_item_groups(
        spec.data, splits.rows["test"], lambda row: task.texts(row, options["columns"])[0]
    )
    issues = [*head_issues, *issues, *group_issues]
    texts = base_model.check_trust(base, spec.base) + warning_texts(issues, splits)
    if Path(base.path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local base needs no hub
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with defaults.length_request(spec, options, base, splits, out) as request:
        request |= _size_request(spec, base, options)
        machine = _detect_machine(spec, make_executor, request)
    size, frozen = machine.pop("base_parameters", None), defaults.frozen_values(out)
    entries = restore_methods([centre_rate(e, size) for e in entries], spec, frozen)
    choices = _choose_defaults(spec, splits, entries, machine, metric.info, options["columns"])
    if note := centre_note(spec, entries, size):
        choices = choices._replace(notes={**choices.notes, "learning_rates": note})
    choices = saved_rate.set_saved_rate(choices, entries, size, started=bool(frozen))
    spec, options = choices.spec, {**options, "max_length": choices.spec.task.max_length}
    unused = defaults.unused_columns(splits, options["columns"], spec.data.group)
    if not (out / study_folder.DATABASE).is_file():
        for note in splits.notes:
            progress.say(note)
        defaults.report_choices(choices, unused, progress)
    warnings = report_warnings(texts, progress)
    conditions = _conditions(spec, base, options, metric, machine, splits)
    study = Study(
        spec, out, entries, conditions, base, machine, splits, warnings, source.resolve(), metric,
        make_executor=make_executor, chosen=choices.notes, unused_columns=unused, groups=groups,
    )  # fmt: skip
    return match_parameters(study) if spec.budget.match == "parameters" else study


def _conditions(
    spec: StudySpec,
    base: base_model.ResolvedBase,
    options: dict[str, Any],
    metric: ChosenMetric,
    machine: Mapping[str, Any],
    splits: Splits,
) -> Conditions:
    """Return what all trials of the study share; a rate to be tuned is still open."""
    rate, saved = spec.task.head_learning_rate, spec.task.saved_learning_rate
    return Conditions(
        base=base.published_as,
        revision=base.commit or spec.base.revision,
        task=spec.task.kind,
        task_options=options,
        metric=metric.name,
        data=study_folder.digests(splits),
        steps=spec.budget.planned_steps,
        batch_size=spec.budget.batch_size,
        evaluation_batch_size=spec.engine.evaluation_batch_size,
        warmup=spec.budget.warmup,
        decay=spec.budget.decay,
        weight_decay=spec.budget.weight_decay,
        clip=spec.budget.clip,
        head_learning_rate=rate if isinstance(rate, float) else None,
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
        saved_learning_rate=saved if isinstance(saved, float) else None,
        metric_source=None if metric.code is None else load.code_digest(metric.code),
    )


def add_head(
    spec: StudySpec,
    base: base_model.ResolvedBase,
    options: dict[str, Any],
    out: Path,
    make_executor: ExecutorFactory = make_executor,
) -> tuple[dict[str, Any], list[DataIssue]]:
    """Return a task's options with its head on this base, and an issue if that replaces another.

    The options are unchanged if the base has no head and the new one is the usual layer. If the
    base cannot be loaded, a study in ``out`` keeps its head: what has changed is reported first.

    Raises:
        PreflightError: ``base-not-loadable``, and what loading a base refuses.
    """
    if not task_class(spec.task.kind).heads:
        return options, []
    request = {
        "task": spec.task.kind,
        "options": options,
        "path": base.path,
        "revision": base.commit or spec.base.revision,
        "trusted": spec.base.trust_remote_code,
    }
    executor = open_executor(spec, make=make_executor)
    try:
        head = run_remote(executor, jobs.FIND_HEAD, request)["head"]
    except PreflightError:
        frozen = defaults.frozen_values(out)
        if not frozen:
            raise
        head = frozen.get(HEAD)
    if head is None:
        return options, []
    if not head["replaced"]:
        return {**options, HEAD: head}, []
    issue = DataIssue(
        "head-replaced",
        f"The base is a finished classifier: its own output layer ({', '.join(head['modules'])}) "
        "is replaced by a new one",
        "its labels and what it has learnt of them are not used; every method begins with the same "
        "new layer.",
    )
    return {**options, HEAD: head}, [issue]


def _size_request(
    spec: StudySpec, base: base_model.ResolvedBase, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the request for the number of parameters of the base."""
    task = task_class(spec.task.kind)
    place = {
        "path": base.path,
        "revision": base.commit or spec.base.revision,
        "trusted": spec.base.trust_remote_code,
    }
    heads = list(task(dict(options)).heads)
    return {"base": {**place, "task_type": task.task_type, "heads": heads}}


def _detect_machine(
    spec: StudySpec, make_executor: ExecutorFactory, requested: Mapping[str, Any]
) -> dict[str, Any]:
    """Return device, precision, threads and quantizer that the study's trials would get.

    The answers to what else is ``requested`` are under ``row_lengths`` and ``base_parameters``.
    """
    request = spec.engine.model_dump(include={"device", "precision", "workers"})
    request["threads"] = spec.engine.requested_threads
    request |= spec.base.model_dump(include={"quantize", "quantizer"}) | dict(requested)
    return run_remote(open_executor(spec, make=make_executor), jobs.DETECT_MACHINE, request)


def _choose_defaults(
    spec: StudySpec,
    splits: Splits,
    entries: Sequence[MethodEntry],
    machine: dict[str, Any],
    metric: MetricInfo,
    columns: Mapping[str, str],
) -> defaults.Choices:
    """Choose the open values of a study; take the rows' token counts out of ``machine``."""
    counted = machine.pop("row_lengths", None)
    choices = defaults.choose_open_values(spec, splits, entries, machine, counted)
    fixed = defaults.describe_defaults(spec, splits, metric, machine)
    if note := task_class(spec.task.kind).describe_columns(spec.data.columns, columns):
        fixed = {"columns": note, **fixed}
    return choices._replace(notes={**fixed, **choices.notes})


def load_general_text(spec: StudySpec, task_type: str, source: Path) -> list[Row]:
    """Return the documents that forgetting is measured on; none unless the task is a causal LM.

    Raises:
        PreflightError: ``forgetting-not-for-task``, and problems of the user's text.
    """
    text = spec.forgetting.text
    if task_type == CAUSAL_LM:
        return data_general_text.load_documents(text, source)
    if text in (data_general_text.DEFAULT, data_general_text.OFF):
        return []
    raise PreflightError(
        "forgetting-not-for-task",
        f"[forgetting] text = '{text}', but the task '{spec.task.kind}' trains a fresh output "
        "layer: there is no next-token loss that could change.",
        'leave [forgetting] out, or text = "off".',
    )


def resolve_metric(
    spec: StudySpec, source: Path, make_executor: ExecutorFactory = make_executor
) -> ChosenMetric:
    """Return the study's metric with checked options; the task's default if it names none.

    Raises:
        UsageError: ``metric-not-for-task``, and problems of the options or the file.
        EnvironmentProblem: ``metric-package-missing``.
    """
    default = task_class(spec.task.kind).default_metric
    task_metrics = load.metrics_for_task(spec.task.kind, default)
    named = load.MetricSource.parse(spec.task.metric or default, source)
    if named.file is None and named.name not in task_metrics:
        near = near_match(named.name, task_metrics)
        hint = f"did you mean '{near}'? " if near else ""
        raise UsageError(
            "metric-not-for-task",
            f"The task '{spec.task.kind}' has no metric '{named.name}'.",
            f'{hint}One of: {", ".join(task_metrics)}; or your own function: "score.py:score".',
        )
    code = named.code()
    request = {
        "metric": spec.task.metric or default,
        "options": spec.task.metric_options,
        "folder": str(source),
    }
    # described where the executor runs: a user's own function will run there too
    executor = open_executor(spec, make=make_executor)
    answer = run_remote(executor, jobs.DESCRIBE_METRIC, request)
    info = MetricInfo(**answer["info"])
    return ChosenMetric(named.name, info, answer["options"], answer["of_losses"], code)


def check_study(study: Study, progress: Progress) -> Study:
    """Check methods, base and tokens in a worker; return the study with the resulting warnings.

    The task's options are completed with what only the tokenizer tells.
    The study's folder must hold its data.

    Raises:
        PreflightError: all errors that the user must fix, with row numbers.
    """
    trials = [prior_trial(study, entry) for entry in study.entries]
    segment = whole_segment(study, trials)
    answer = run_remote(study.executor(), jobs.CHECK_STUDY, segment.to_json())
    issues = [DataIssue.from_json(issue) for issue in answer["faults"]]
    raise_fatal(issues, study.splits)
    options = answer.get("task_options", study.conditions.task_options)
    conditions = dataclasses.replace(study.conditions, task_options=options)
    study = study._replace(conditions=conditions)
    done = [issue for issue in issues if issue.code in MENDED]
    for issue in done:
        progress.say(issue.cause(study.splits.place))
    texts = warning_texts(done, study.splits)
    study = study._replace(warnings=tuple(dict.fromkeys([*study.warnings, *texts])))
    others = [issue for issue in issues if issue.code not in MENDED]
    return add_warnings(study, warning_texts(others, study.splits), progress)


def add_warnings(study: Study, warnings: Sequence[str], progress: Progress) -> Study:
    """Report the warnings that are new; return the study with them."""
    new = [warning for warning in warnings if warning not in study.warnings]
    return study._replace(warnings=study.warnings + report_warnings(new, progress))


def match_parameters(study: Study) -> Study:
    """Give every method the size with as many trainable parameters as the control (or as set)."""
    task = task_class(study.spec.task.kind)
    request = {
        "segment": whole_segment(study, [prior_trial(study, e) for e in study.entries]).to_json(),
        "task_type": task.task_type,
        "heads": list(task(study.conditions.task_options).heads),
        "target": study.spec.budget.parameters,
        "fixed": {
            e.name: sorted({key for t in study.spec.tables_of(e.name) for key in t.config})
            for e in study.entries
        },
    }
    sizes = tuple(run_remote(study.executor(), jobs.MATCH_PARAMETERS, request)["sizes"])
    entries = []
    for entry, size in zip(study.entries, sizes, strict=True):
        if size["value"] is not None:
            config = {**entry.config, size["argument"]: size["value"]}
            entry = dataclasses.replace(entry, config=config)
        entries.append(entry)
    return study._replace(entries=tuple(entries), sizes=sizes)
