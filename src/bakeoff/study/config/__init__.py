"""The configuration of a study, read from ``study.toml`` and validated.

Each table of the file is a model in one of these modules, with its defaults.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError, model_validator

from bakeoff.core.errors import UsageError, near_match
from bakeoff.core.safe_read import STUDY_BYTES, UnreadableFile, find_unsupported_value, read_text
from bakeoff.study.config.base import Name, SpecTable
from bakeoff.study.config.budget import (
    BudgetSpec,
    MethodSpec,
    MethodsSpec,
    VerdictSpec,
    method_name,
)
from bakeoff.study.config.engine import EngineSpec
from bakeoff.study.config.inputs import JOINT, BaseSpec, DataSpec, ForgettingSpec, TaskSpec

_BACKSLASHED = re.compile(r'"([^"\']*\\[^"\']*)"')
"""A string in double quotes with a backslash, and without single quotes."""
MAX_SEED = 2**32 - 1
"""The largest seed that every random number generator accepts."""


class StudySpec(SpecTable):
    """The configuration of a study: base model, data, task, methods and budget."""

    name: Name
    """Name of the study, and of its folder under `runs/`."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of every random choice: splits, data order, initialisation, resampling."""
    base: BaseSpec
    data: DataSpec
    task: TaskSpec
    methods: MethodsSpec
    method: dict[Name, MethodSpec] = {}
    budget: BudgetSpec = BudgetSpec()
    forgetting: ForgettingSpec = ForgettingSpec()
    verdict: VerdictSpec = VerdictSpec()
    engine: EngineSpec = EngineSpec()

    @model_validator(mode="after")
    def _check_overrides(self) -> StudySpec:
        used = {name for m in self.method_names for name in self.lineage(method_name(m))}
        for name, override in self.method.items():
            if name not in used:
                near = near_match(name, used)
                raise ValueError(
                    f"[method.{name}] belongs to no method of this study"
                    + (f"; did you mean '{near}'?" if near else "")
                )
            rates = override.learning_rates
            if rates is not None and len(rates) != self.budget.settings:
                raise ValueError(
                    f"[method.{name}] gives {len(rates)} learning rates, but every method gets "
                    f"budget.settings = {self.budget.settings}"
                )
        return self

    @model_validator(mode="after")
    def _check_steps_or_hours(self) -> StudySpec:
        if self.budget.hours is not None and "steps" in self.budget.model_fields_set:
            raise ValueError("budget: either `steps` or `hours`, since hours determine the steps")
        return self

    @model_validator(mode="after")
    def _check_target(self) -> StudySpec:
        if self.budget.parameters is not None and self.budget.match != "parameters":
            raise ValueError('budget.parameters needs budget.match = "parameters"')
        return self

    def lineage(self, name: str) -> tuple[str, ...]:
        """Return a method's name, that of the method it is `like`, and so on.

        Raises:
            ValueError: a method is like itself.
        """
        names = [name]
        while (table := self.method.get(names[-1])) is not None and table.like is not None:
            following = method_name(table.like)
            if following in names:
                raise ValueError(f"[method.{name}] is like itself: {', '.join(names)}, {following}")
            names.append(following)
        return tuple(names)

    def tables_of(self, name: str) -> tuple[MethodSpec, ...]:
        """Return a method's table, then those of the methods that it is like."""
        return tuple(self.method[n] for n in self.lineage(name) if n in self.method)

    @model_validator(mode="after")
    def _check_joint_rate(self) -> StudySpec:
        if self.task.head_learning_rate == JOINT and self.budget.tune != "all":
            raise ValueError(
                'task.head_learning_rate = "joint" needs budget.tune = "all", and more settings'
            )
        return self

    @property
    def method_names(self) -> tuple[str, ...]:
        """The control, then the contenders in the user's order."""
        return (self.methods.control, *self.methods.contenders)


def read_spec(path: Path) -> StudySpec:
    """Read and check a study file.

    Raises:
        UsageError: ``study-not-found``, ``study-unreadable``, ``study-invalid``.
    """
    try:
        text = read_text(path, STUDY_BYTES)
    except UnreadableFile as error:
        if error.missing:
            raise UsageError(
                "study-not-found",
                f"There is no study file {path}.",
                "`bakeoff init` writes one, or `bakeoff run --model M --data F` works without.",
            ) from error
        raise UsageError(
            "study-unreadable",
            f"{path} cannot be read: {error}.",
            "save it as UTF-8 (in Notepad: Save as, Encoding: UTF-8).",
        ) from error
    try:
        return parse_spec(tomllib.loads(text))
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOMLDecodeError, or a number with too many digits
        raise UsageError(
            "study-unreadable",
            f"{path} is not TOML: {_short_message(error)}.",
            _toml_hint(text, str(error)),
        ) from error


def _toml_hint(text: str, message: str) -> str:
    """Return the hint for a TOML error: how to write a path with backslashes, if one is there."""
    at = re.search(r"\(at line (\d+)", message)
    line = text.split("\n")[int(at[1]) - 1].strip() if at else ""
    if "\0" in text:
        return "save it as UTF-8 (in Notepad: Save as, Encoding: UTF-8)."
    literal = _BACKSLASHED.sub(r"'\1'", line)
    if literal != line:
        return f"single quotes keep backslashes: `{literal}`."
    return "fix that line."


def parse_spec(value: dict[str, Any]) -> StudySpec:
    """Validate a study given as plain values.

    Raises:
        UsageError: ``study-invalid``, naming each wrong key; an unknown one with a near match.
    """
    if (problem := find_unsupported_value(value)) is not None:
        raise UsageError("study-invalid", f"{problem}.", "`bakeoff schema` lists every key.")
    try:
        return StudySpec.model_validate(value)
    except ValidationError as error:
        lines, near = [], None
        for item in error.errors():
            where = ".".join(str(p) for p in item["loc"]) or "the study"
            if item["type"] == "extra_forbidden":
                known = _keys_at(item["loc"][:-1])
                near = near_match(str(item["loc"][-1]), known)
                lines.append(
                    f"unknown key '{where}'" + (f"; did you mean '{near}'?" if near else "")
                )
            else:
                lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
        hint = f"rename it to '{near}'; " if near else ""
        raise UsageError(
            "study-invalid", "; ".join(lines) + ".", f"{hint}`bakeoff schema` lists every key."
        ) from error


def _short_message(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:300]


def _keys_at(path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the keys of the spec's table at ``path``."""
    model: Any = StudySpec
    for part in path:
        model = model.model_fields[part].annotation if part in model.model_fields else MethodSpec
        model = MethodSpec if get_args(model) else model
    return tuple(model.model_fields)


def dump_spec(spec: StudySpec) -> dict[str, Any]:
    """Return the spec as plain values without unset ones, since TOML has no null."""
    return _without_none(spec.model_dump(mode="json"))


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {
        k: _without_none(v) if isinstance(v, dict) else v for k, v in value.items() if v is not None
    }


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(item) if isinstance(item, tuple) else item
    return flat
