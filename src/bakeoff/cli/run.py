"""``bakeoff run``: run a study, or resume it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from bakeoff.cli.display import verdict
from bakeoff.cli.display.output import (
    JSON_OPTION,
    RUNS,
    VERBOSE_OPTION,
    err,
    escape_text,
    show_json,
)
from bakeoff.cli.display.progress import LiveProgress
from bakeoff.core import worker_log
from bakeoff.core.errors import PreflightError, UsageError
from bakeoff.core.names import expand_home, invalid_path_reason, sanitize_name
from bakeoff.tasks import task_class

if TYPE_CHECKING:
    from bakeoff.integrations.peft_benchmark.experiment import Experiment
    from bakeoff.study.config import StudySpec

SOME_FAILED = 4
DEFAULT_METHODS = "lora,dora,ia3,vera,oft,full"


class RunOptions(NamedTuple):
    """How to run a study beyond its missing trials; see ``api.run``."""

    again: bool = False
    retry: bool = False
    fork: Path | None = None


DEFAULT_OPTIONS = RunOptions()

_MODEL = typer.Option(
    None, help="Base model, without a study file: a folder, a hub id or asset:NAME."
)
_DATA = typer.Option(
    None,
    help="Training rows, without a study file: JSONL, JSON, CSV, TSV or Parquet, a folder of "
    "such files, or hub:org/name.",
)
_COLUMN = typer.Option(
    [], help="field=column or field=template, for example label=intent; repeat for each field."
)
_METHODS = typer.Option(DEFAULT_METHODS, help="Names separated by commas: the control first.")
_HF_EXPERIMENT = typer.Option(
    None, help="Add an experiment folder of PEFT's method_comparison as a contender."
)
_HF_DEFAULTS = typer.Option(
    None,
    help="The experiment's default_training_params.json, if it is not in a folder above it.",
)
_AGAIN = typer.Option(
    False,
    "--again",
    help="Allow re-evaluation on the test set after a change (recorded in the report).",
)
_RETRY = typer.Option(False, "--retry", help="Retry trials that failed or ran out of memory.")
_FORK = typer.Option(
    None,
    help="Start a new study in this folder with the current settings, reusing unchanged trials.",
)
_LOG_LEVEL = typer.Option(
    worker_log.DEFAULT_LEVEL,
    "--log-level",
    envvar=worker_log.LEVEL_VARIABLE,
    help="Detail of the workers' logs in the study folder, logs/worker-N.log: debug, info, "
    "warning or error.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(command)


def command(
    study: Path | None = typer.Argument(None, help="A study.toml, or a study folder."),
    model: str | None = _MODEL,
    data: str | None = _DATA,
    column: list[str] = _COLUMN,
    methods: str = _METHODS,
    steps: int | None = typer.Option(None, help="Optimizer steps of each trial."),
    hf_experiment: Path | None = _HF_EXPERIMENT,
    hf_defaults: Path | None = _HF_DEFAULTS,
    out: Path | None = typer.Option(None, help="Study folder; default: runs/NAME."),
    again: bool = _AGAIN,
    retry: bool = _RETRY,
    fork: Path | None = _FORK,
    log_level: str = _LOG_LEVEL,
    verbose: bool = VERBOSE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Run a study and print its verdict. Run it again to resume: only missing trials are run."""
    from bakeoff.integrations.peft_benchmark import experiment as experiments
    from bakeoff.study.config import read_spec

    for option, value in (("--model", model), ("--data", data)):
        if value is not None and (why := invalid_path_reason(value)) is not None:
            raise UsageError("path-malformed", f"{option}: {why}.", "a folder, a file or an id.")
    experiment = (
        experiments.read_experiment(hf_experiment, hf_defaults)
        if hf_experiment is not None
        else None
    )
    with ExitStack() as stack:
        stack.enter_context(worker_log.use_level(log_level))
        if study is not None:
            path = study / "study.toml" if study.is_dir() else study
            spec = read_spec(path)
            inside = (path.parent / "study.db").is_file()
            folder = out or (path.parent if inside else RUNS / spec.name)
        elif model and data:
            place = folder = out or RUNS / _study_name(data)
            if fork is not None:  # the parent is only read, and the fork's folder must be empty
                place = Path(stack.enter_context(TemporaryDirectory()), folder.resolve().name)
            path = write_study(place, model, data, column, methods, steps, experiment)
            spec = read_spec(path)
            if experiment is None and not (folder / "study.db").is_file():
                show_choices(spec)
        else:
            raise UsageError(
                "no-study-given",
                "Neither a study file nor --model with --data was given.",
                "`bakeoff run study.toml`, or `bakeoff run --model M --data train.jsonl`.",
            )
        if experiment is not None:
            spec = _with_experiment(spec, experiment)
        options = RunOptions(again, retry, fork)
        raise typer.Exit(execute(spec, path.parent, folder, as_json, options, verbose))


def _with_experiment(spec: StudySpec, experiment: Experiment) -> StudySpec:
    """Add an experiment of PEFT's benchmark to a study and print what differs from the original."""
    from bakeoff.integrations.peft_benchmark import experiment as experiments

    spec = experiments.add_contender(spec, experiment)
    for note in (
        *experiments.experiment_notes(experiment),
        *experiments.differing_settings(spec, experiment),
    ):
        err.print(f"[yellow]{escape_text(experiment.name)}:[/] {escape_text(note)}")
    return spec


def execute(
    spec: StudySpec,
    source: Path,
    folder: Path,
    as_json: bool,
    options: RunOptions = DEFAULT_OPTIONS,
    verbose: bool = False,
) -> int:
    """Run a study with progress on stderr and its verdict on stdout; return the exit code."""
    from bakeoff import api

    with LiveProgress(err, options.fork or folder, verbose) as live:
        report = api.run(spec, source, folder, live, **options._asdict())
    folder = options.fork or folder
    if as_json:
        show_json(report)
        verdict.show_failed(report, folder)
    else:
        verdict.show(report, folder, live.warned, verbose)
    err.print(escape_text(f"Report: {folder / 'report.html'}"), soft_wrap=True)
    failed = [f for f in report["failures"] if f["status"] in ("failed", "out_of_memory")]
    return SOME_FAILED if failed else 0


def write_study(
    folder: Path,
    model: str,
    data: str,
    column: list[str],
    methods: str,
    steps: int | None,
    experiment: Experiment | None = None,
) -> Path:
    """Write the study file that the options describe and return its path.

    ``experiment`` gives the conditions that the options do not. In a folder that holds a study, the
    file is written as ``asked.toml``, next to the frozen ``study.toml``.

    Raises:
        UsageError: an option is malformed, or the task cannot be told from the columns.
    """
    import tomli_w

    from bakeoff.core import files
    from bakeoff.integrations.peft_benchmark import experiment as experiments
    from bakeoff.study.config import parse_spec
    from bakeoff.study.storage import study_dir as study_folder

    columns = dict(_parse_column(c) for c in column)
    if experiment is not None and not columns:
        columns = experiments.data_columns(experiment)
    control, *contenders = [m.strip() for m in methods.split(",") if m.strip()]
    value: dict[str, Any] = experiments.study_tables(experiment) if experiment is not None else {}
    tables: dict[str, dict[str, Any]] = {
        "base": {"model": _absolute_model(model)},
        "data": {"train": _absolute_data(data), "columns": columns},
        "task": {"kind": guess_task(data, columns)},
        "methods": {"control": control, "contenders": contenders},
        "budget": {} if steps is None else {"steps": steps},
    }
    value |= {"name": sanitize_name(folder.resolve().name)}
    value |= {key: {**value.get(key, {}), **table} for key, table in tables.items()}
    parse_spec(value)
    study_folder.create(folder)
    path = folder / "study.toml"
    if (folder / "study.db").is_file():
        path = folder / "asked.toml"  # keep the frozen study file; api.run compares the two
    with files.translate_disk_full(folder):
        files.atomic_write_text(path, tomli_w.dumps(value))
    return path


def show_choices(spec: StudySpec) -> None:
    """Print the task and the methods of a study that is described by options."""
    fields = ", ".join(f"{field} = {column}" for field, column in spec.data.columns.items())
    contenders = ", ".join(spec.methods.contenders)
    for line in (
        f"Task: {spec.task.kind} ({fields or 'by the names of the columns'}; --column)",
        f"Methods: {contenders}, compared with {spec.methods.control} (--methods)",
    ):
        err.print(escape_text(line), soft_wrap=True)


def guess_task(data: str, columns: dict[str, str]) -> str:
    """Return the first task whose fields are all among the columns.

    Raises:
        UsageError: ``task-unclear``, listing the columns.
    """
    from bakeoff.core import plugins
    from bakeoff.data import sources
    from bakeoff.data.chat.forms import first_values
    from bakeoff.data.templates import columns_of, has_cell

    present = first_values(sources.load_splits({"train": data}, Path())["train"].rows)
    for name in plugins.list_plugins("tasks"):
        with suppress(PreflightError):  # a field that this task does not have
            fields = task_class(name).columns(columns, present)
            if all(has_cell(present, c) for text in fields.values() for c in columns_of(text)):
                return name
    raise UsageError(
        "task-unclear",
        f"The columns of {data} ({', '.join(map(str, present))}) do not show the task: "
        "text -> label, prompt -> completion or chat messages.",
        "name them: `--column text=COLUMN --column label=COLUMN` (or prompt and completion, or "
        "messages).",
    )


def _parse_column(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field or not value:
        raise UsageError(
            "column-malformed", f"--column {text} is not field=column.", "--column label=intent"
        )
    return field, value


def _study_name(data: str) -> str:
    """Return the name of a study of this data: its file, its folder, or its hub id."""
    from bakeoff.data.sources import hub

    if data.startswith(hub.PREFIX):
        data, _ = hub.split_reference(data, Path())
    return sanitize_name(Path(data).resolve().stem)


def _absolute_data(data: str) -> str:
    from bakeoff.data.assets import ASSET
    from bakeoff.data.sources import hub

    if data.startswith(ASSET):
        return data
    if not data.startswith(hub.PREFIX):
        return str(expand_home(data).resolve())
    location, split = hub.split_reference(data, Path())
    if location.startswith((".", "/", "~")):
        location = str(expand_home(location).resolve())
    return f"{hub.PREFIX}{location}{':' if split else ''}{split}"


def _absolute_model(model: str) -> str:
    folder = expand_home(model)
    return str(folder.resolve()) if folder.is_dir() else model
