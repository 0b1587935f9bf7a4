"""Find the metric that a study file names, and check its options before anything is trained.

It is a file in ``metrics/`` or a function in the user's own Python file, which runs in the user's
trust. Both have the same form: answer and reference in, a number out, and every further argument is
an option. ``describe`` is what an executor calls when a study is opened, ``load`` what scores.
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
    near_match,
)
from bakeoff.core.names import is_within
from bakeoff.core.record import MetricInfo
from bakeoff.core.safe_read import STUDY_BYTES, UnreadableFile, read_bytes
from bakeoff.core.trial import Conditions
from bakeoff.metrics.run import ITEM_SECONDS, Metric

FOLDER = "metric"
"""Where a study folder keeps the user's metric file."""
TABLE = "[task.metric_options]"
PLAIN = (bool, int, float, str)
"""Types of options that are checked; a function may annotate others at its own risk."""

Options = Mapping[str, Any]


class MetricSource(NamedTuple):
    """A metric as a study names it: a plug-in's name, or a function in a Python file."""

    name: str
    file: Path | None = None
    function: str = ""
    home: Path = Path()
    """The folder that the file must lie in."""

    @classmethod
    def read(cls, given: str, folder: Path) -> MetricSource:
        """Tell ``exact_match`` from ``score.py:score``, whose file is relative to ``folder``.

        Raises:
            UsageError: ``metric-function-unnamed``.
        """
        path, _, function = given.rpartition(":")
        if given.endswith(".py"):
            raise UsageError(
                "metric-function-unnamed",
                f"The metric '{given}' names a file and no function in it.",
                f'metric = "{given}:score", if the function is called score.',
            )
        if not path.endswith(".py"):
            return cls(given)
        return cls(f"{Path(path).name}:{function}", folder / path, function, folder)

    def code(self) -> bytes | None:
        """Return the bytes of the user's file; None for a plug-in.

        It lies in the study file's folder: any other Python file of this machine, the standard
        library's included, would be run with the data as its arguments.

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


def code_digest(code: bytes) -> str:
    """Return what tells one version of the user's file from another."""
    return hashlib.sha256(code).hexdigest()


def describe(value: dict[str, Any]) -> dict[str, Any]:
    """Check a metric and its options: what an executor calls, JSON in and out.

    ``value``: ``metric`` and ``options`` as the study file has them, the ``folder`` that a file is
    relative to. Returns ``info``, the ``options`` completed, and ``of_losses``; or an ``error``.
    """
    try:
        source = MetricSource.read(value["metric"], Path(value["folder"]))
        metric = _build_metric(source, source.code(), value["options"])
    except BakeoffError as error:
        return {"error": error.to_json()}
    info = asdict(metric.info)
    about = {k: info[k] for k in _info_options() if info[k] is not None} if source.file else {}
    options = {**about, **metric.options, "timeout": metric.timeout}
    return {"error": None, "info": info, "options": options, "of_losses": metric.of_losses}


def load_metric(c: Conditions, folder: Path) -> Metric:
    """Return the metric of a study's conditions; a user's file is the frozen copy in ``folder``.

    Raises:
        PreflightError: ``metric-changed``.
    """
    source = MetricSource.read(c.metric, folder / FOLDER)
    code = source.code()
    if code is not None and code_digest(code) != c.metric_source:
        raise PreflightError(
            "metric-changed",
            f"{source.file} is not the file that the study was begun with.",
            "put that one back, or begin another study folder.",
        )
    return _build_metric(source, code, c.metric_options)


def _build_metric(source: MetricSource, code: bytes | None, options: Options) -> Metric:
    rest = dict(options)
    timeout = rest.pop("timeout", ITEM_SECONDS)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise _option_error(f"`timeout` is {timeout!r}", "seconds, above 0")
    if code is None:
        module = plugins.load_plugin("metrics.builtin", source.name, "metric")
        _check_package(module)
        of_losses = hasattr(module, "score_loss")
        function = module.score_loss if of_losses else module.score
        known = _complete_options(function, rest, reserved=())
        if hasattr(module, "check"):
            try:
                module.check(**known)
            except ValueError as error:
                raise _option_error(str(error), "see docs/metrics.md") from error
        return Metric(module.INFO, function, known, float(timeout), of_losses)
    function = _load_user_function(source, code)
    info = _build_info(source.name, {k: rest.pop(k) for k in _info_options() if k in rest})
    return Metric(
        info, function, _complete_options(function, rest, _info_options()), float(timeout)
    )


def _check_package(module: ModuleType) -> None:
    package, extra = getattr(module, "NEEDS", (None, None))
    if package is not None and importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(
            "metric-package-missing",
            f"The metric '{module.INFO.name}' needs the package {package}, which is not installed.",
            f"`pip install 'bakeoff[{extra}]'`.",
        )


def _info_options() -> tuple[str, ...]:
    """Return the options that describe a function of the user's own."""
    return tuple(k for k in MetricInfo.__annotations__ if k != "name")


def _build_info(name: str, about: Options) -> MetricInfo:
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
    """Run the user's file and return the function in it.

    Raises:
        UsageError: ``metric-not-loadable``, ``metric-function-missing``, ``metric-signature``.
    """
    module = ModuleType(f"bakeoff_metric_{code_digest(code)[:12]}")
    module.__file__ = str(source.file)
    sys.modules[module.__name__] = module  # dataclasses in it look themselves up there
    try:
        exec(compile(code, str(source.file), "exec"), module.__dict__)
    except Exception as error:  # the user's code: it can be any
        raise UsageError(
            "metric-not-loadable",
            f"{source.file} cannot be run: {type(error).__name__}: {error}",
            "one file that imports installed packages alone: it is copied into the study folder.",
        ) from error
    function = module.__dict__.get(source.function)
    if not callable(function):
        there = [k for k, v in module.__dict__.items() if callable(v) and k[0] != "_"]
        near = near_match(source.function, there)
        hint = f"did you mean '{near}'? " if near else ""
        raise UsageError(
            "metric-function-missing",
            f"{source.file} has no function '{source.function}'.",
            f"{hint}It has: {', '.join(sorted(there)) or 'none'}.",
        )
    found: Callable[..., Any] = function
    try:
        inspect.signature(found).bind_partial("an answer", "its reference")
    except (TypeError, ValueError) as error:
        raise UsageError(
            "metric-signature",
            f"{source.name} cannot be called with an answer and a reference: {error}.",
            f"`def {source.function}(prediction: str, reference: str) -> float`.",
        ) from error
    return found


def _complete_options(
    function: Callable[..., Any], given: Options, reserved: Sequence[str]
) -> dict[str, Any]:
    """Return the options with the function's defaults: its arguments beyond the first two.

    Raises:
        UsageError: ``metric-option-unknown`` with the near match, ``metric-option-missing``,
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
    if isinstance(value, bool) or hint is bool:  # to Python a bool is an int, too
        return hint is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if hint is float else hint)


def _plain_types(function: Callable[..., Any]) -> dict[str, type]:
    """Return the plain types that a function's arguments are annotated with."""
    try:
        found = typing.get_type_hints(function)
    except Exception:  # names that only a type checker knows
        return {}
    return {name: hint for name, hint in found.items() if hint in PLAIN}


def _option_error(cause: str, hint: str) -> UsageError:
    return UsageError("metric-option", f"{TABLE}: {cause}.", f"{hint}.")
