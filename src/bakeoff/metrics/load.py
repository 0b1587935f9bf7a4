"""Load the metric that a study file names, and check its options before anything is trained.

A metric is a file in ``metrics/builtin/`` or a function in the user's own Python file, which runs
with the user's rights. Both take a prediction and its reference and return a number; every further
argument is an option.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bakeoff.core import plugins
from bakeoff.core.errors import (
    BakeoffError,
    EnvironmentProblem,
    PreflightError,
    UsageError,
    describe_error,
    near_match,
)
from bakeoff.core.names import is_within
from bakeoff.core.record import MetricInfo
from bakeoff.core.safe_read import STUDY_BYTES, UnreadableFile, read_bytes
from bakeoff.core.trial import Conditions
from bakeoff.metrics.run import ITEM_SECONDS, Metric

PACKAGE = "metrics.builtin"
"""Plug-in package of the built-in metrics."""
FOLDER = "metric"
"""Subfolder of a study folder with the user's metric file."""
TABLE = "[task.metric_options]"
PLAIN = (bool, int, float, str)
"""Option types that are checked; arguments annotated with other types are not."""

Options = Mapping[str, Any]


class MetricSource(NamedTuple):
    """A metric as a study names it: a built-in name, or a function in a Python file."""

    name: str
    file: Path | None = None
    function: str = ""
    home: Path = Path()
    """The folder that must contain the file."""

    @classmethod
    def parse(cls, given: str, folder: Path) -> MetricSource:
        """Parse ``exact_match``, or ``score.py:score`` with a file relative to ``folder``.

        Raises:
            UsageError: ``metric-function-unnamed``.
        """
        path, _, function = given.rpartition(":")
        if given.endswith(".py"):
            raise UsageError(
                "metric-function-unnamed",
                f"The metric '{given}' names a file without a function.",
                f'metric = "{given}:score", if the function is called score.',
            )
        if not path.endswith(".py"):
            return cls(given)
        return cls(f"{Path(path).name}:{function}", folder / path, function, folder)

    def code(self) -> bytes | None:
        """Return the bytes of the user's file; None for a built-in metric.

        The file must be in the study file's folder. Otherwise a study file could run any Python
        file of this machine, the standard library's included, with the data as arguments.

        Raises:
            UsageError: ``metric-file-missing``, ``metric-outside``.
        """
        if self.file is None:
            return None
        hint = 'a path relative to the study file: `metric = "score.py:score"`.'
        if not is_within(self.file, self.home):
            cause = f"The metric's file {self.file} is not in the folder of the study file."
            raise UsageError("metric-outside", cause, f"copy it there; {hint}")
        try:
            return read_bytes(self.file, STUDY_BYTES)
        except UnreadableFile as error:
            cause = f"The metric's file {self.file} cannot be read: {error}."
            raise UsageError("metric-file-missing", cause, hint) from error


def metrics_for_task(kind: str, default: str) -> tuple[str, ...]:
    """Return the built-in metrics that fit a task, its default first.

    Each metric declares the tasks that it fits (``TASKS``).
    """
    fitting = [
        name
        for name in plugins.list_plugins(PACKAGE)
        if name != default and kind in plugins.load_plugin(PACKAGE, name, "metric").TASKS
    ]
    return (default, *fitting)


def code_digest(code: bytes) -> str:
    """Return the digest of a version of the user's file."""
    return hashlib.sha256(code).hexdigest()


def describe(value: dict[str, Any]) -> dict[str, Any]:
    """Check a metric and its options; an executor calls it with JSON values.

    ``value`` has ``metric`` and ``options`` from the study file, and the ``folder`` that a file is
    relative to. Return ``info``, the completed ``options`` and ``of_losses``; or an ``error``.
    """
    try:
        source = MetricSource.parse(value["metric"], Path(value["folder"]))
        metric = _build_metric(source, source.code(), value["options"])
    except BakeoffError as error:
        return {"error": error.to_json()}
    info = asdict(metric.info)
    about = {k: info[k] for k in _info_options() if info[k] is not None} if source.file else {}
    options = {**about, **metric.options, "timeout": metric.timeout}
    return {"error": None, "info": info, "options": options, "of_losses": metric.of_losses}


def load_metric(c: Conditions, folder: Path) -> Metric:
    """Return the metric of a study; a user's file is the frozen copy in its ``folder``.

    Raises:
        PreflightError: ``metric-changed``.
    """
    source = MetricSource.parse(c.metric, folder / FOLDER)
    code = source.code()
    if code is not None and code_digest(code) != c.metric_source:
        raise PreflightError(
            "metric-changed",
            f"{source.file} is not the file that the study was started with.",
            "restore that file, or start a new study folder.",
        )
    return _build_metric(source, code, c.metric_options)


def _build_metric(source: MetricSource, code: bytes | None, options: Options) -> Metric:
    """Return a metric with its options completed and checked."""
    rest = dict(options)
    timeout = rest.pop("timeout", ITEM_SECONDS)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise _option_error(f"`timeout` is {timeout!r}", "seconds, above 0")
    if code is None:
        module = plugins.load_plugin(PACKAGE, source.name, "metric")
        _check_package(module)
        of_losses = hasattr(module, "score_loss")
        function = module.score_loss if of_losses else module.score
        completed = _complete_options(function, rest, reserved=())
        # ids of trials hash the options: one that came later counts only where it is set
        for name in getattr(module, "LATER_OPTIONS", ()):
            if name not in rest:
                del completed[name]
        if hasattr(module, "check"):
            try:
                module.check(**completed)
            except ValueError as error:
                raise _option_error(str(error), "see docs/metrics.md") from error
        return Metric(module.INFO, function, completed, float(timeout), of_losses)
    function = _load_user_function(source, code)
    info = _build_info(source.name, {k: rest.pop(k) for k in _info_options() if k in rest})
    return Metric(
        info, function, _complete_options(function, rest, _info_options()), float(timeout)
    )


def _check_package(module: ModuleType) -> None:
    """Check that the optional package of a metric is installed.

    Raises:
        EnvironmentProblem: ``metric-package-missing``.
    """
    package, extra = getattr(module, "NEEDS", (None, None))
    if package is not None and importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(
            "metric-package-missing",
            f"The metric '{module.INFO.name}' needs the package {package}, which is not installed.",
            f"`pip install 'bakeoff[{extra}]'`.",
        )


def _info_options() -> tuple[str, ...]:
    """Return the options that describe a user's own function."""
    return tuple(k for k in MetricInfo.__annotations__ if k != "name")


def _build_info(name: str, about: Options) -> MetricInfo:
    """Return the description of a user's function from its options."""
    info = MetricInfo(name, **{"better": "higher", "unit": "score", **about})
    if info.better not in ("higher", "lower"):
        raise _option_error(f"`better` is {info.better!r}", '"higher" or "lower"')
    if not isinstance(info.unit, str) or not info.unit:
        raise _option_error(f"`unit` is {info.unit!r}", 'a word, such as "points"')
    ends = [x for x in (info.low, info.high) if x is not None]
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in ends):
        raise _option_error(f"`low` and `high` are {info.low!r} and {info.high!r}", "numbers")
    if len(ends) == 2 and not ends[0] < ends[1]:
        raise _option_error(f"`low` is {ends[0]:g} and `high` {ends[1]:g}", "`low` below `high`")
    return info


def _load_user_function(source: MetricSource, code: bytes) -> Callable[..., Any]:
    """Execute the user's file and return its function.

    Raises:
        UsageError: ``metric-not-loadable``, ``metric-function-missing``, ``metric-signature``.
    """
    module = ModuleType(f"bakeoff_metric_{code_digest(code)[:12]}")
    module.__file__ = str(source.file)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    try:
        exec(compile(code, str(source.file), "exec"), module.__dict__)
    except Exception as error:  # the user's code can raise anything
        raise UsageError(
            "metric-not-loadable",
            f"{source.file} cannot be run: {describe_error(error)}",
            "use one file that only imports installed packages: the study folder gets a copy.",
        ) from error
    function = module.__dict__.get(source.function)
    if not callable(function):
        defined = [k for k, v in module.__dict__.items() if callable(v) and k[0] != "_"]
        near = near_match(source.function, defined)
        hint = f"did you mean '{near}'? " if near else ""
        raise UsageError(
            "metric-function-missing",
            f"{source.file} has no function '{source.function}'.",
            f"{hint}It has: {', '.join(sorted(defined)) or 'none'}.",
        )
    scorer: Callable[..., Any] = function
    try:
        inspect.signature(scorer).bind_partial("an answer", "its reference")
    except (TypeError, ValueError) as error:
        raise UsageError(
            "metric-signature",
            f"{source.name} cannot be called with a prediction and a reference: {error}.",
            f"`def {source.function}(prediction: str, reference: str) -> float`.",
        ) from error
    return scorer


def _complete_options(
    function: Callable[..., Any], given: Options, reserved: Sequence[str]
) -> dict[str, Any]:
    """Return the options with the defaults of the function's arguments after the first two.

    Raises:
        UsageError: ``metric-option-unknown`` with the nearest name, ``metric-option-missing``,
            ``metric-option``.
    """
    arguments = inspect.signature(function).parameters.values()
    positional = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p for p in arguments if p.kind is p.KEYWORD_ONLY]
    named = {p.name: p for p in (*positional[2:], *by_name)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in arguments)
    hints = _plain_types(function)
    for name, value in given.items():
        if name not in named and not takes_any:
            known = sorted([*named, *reserved, "timeout"])
            near = near_match(name, known)
            hint = f"did you mean '{near}'? " if near else ""
            raise UsageError(
                "metric-option-unknown",
                f"The metric has no option '{name}' ({TABLE}).",
                f"{hint}Its options are: {', '.join(known)}.",
            )
        if name in hints and not _fits(value, hints[name]):
            raise _option_error(f"`{name}` is {value!r}", f"a value of type {hints[name].__name__}")
    for name, argument in named.items():
        if name not in given and argument.default is argument.empty:
            raise UsageError(
                "metric-option-missing",
                f"The metric needs the option '{name}'.",
                f"`{name} = …` under {TABLE}.",
            )
    defaults = {n: p.default for n, p in named.items() if isinstance(p.default, PLAIN)}
    return {**defaults, **given}


def _fits(value: Any, hint: type) -> bool:
    """Return whether a value has the annotated type; an int is also a float."""
    if isinstance(value, bool) or hint is bool:  # in Python a bool is an int
        return hint is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if hint is float else hint)


def _plain_types(function: Callable[..., Any]) -> dict[str, type]:
    """Return the arguments of a function that are annotated with a plain type."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that only exist for a type checker
        return {}
    return {name: hint for name, hint in hints.items() if hint in PLAIN}


def _option_error(cause: str, hint: str) -> UsageError:
    return UsageError("metric-option", f"{TABLE}: {cause}.", f"{hint}.")
