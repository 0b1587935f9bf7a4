"""StudySpec: what the user asks, read from ``study.toml``; frozen, unknown keys refused.

The first noun in the way of the data. A default is written once, here. Never imports torch.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bakeoff.errors import UsageError, near_match

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Switch = Literal["auto", "on", "off"]
OnOff = Literal["on", "off"]
Preference = Literal["quality", "memory", "speed", "size", "serving"]
Axis = Literal["quality", "memory", "speed", "size", "forgetting"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BaseSpec(_Part):
    """The frozen base model."""

    model: str
    """A folder with safetensors weights, a hub id, or `asset:<name>` (see `bakeoff assets`)."""
    revision: str | None = None
    """Commit or tag of a hub model; a local folder takes none."""


class LimitSpec(_Part):
    """Take only so many rows of a split: a random sample, the same for every method."""

    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] | None = None
    test: Annotated[int, Field(ge=1)] | None = None


class DataSpec(_Part):
    """Where the rows are. Without validation or test they are cut from train, once."""

    train: str
    """JSONL, JSON, CSV or TSV; relative to the study file."""
    validation: str | None = None
    """Settings are chosen on it."""
    test: str | None = None
    """The verdict is read from it, once."""
    group: str | None = None
    """Column whose rows stay in one split when splits are cut (template, author, document)."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    """Share of the groups cut off for validation, if no validation file is given."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    """Share of the groups cut off for test, if no test file is given."""
    limit: LimitSpec = LimitSpec()
    """Largest number of rows of each split."""
    columns: dict[str, str] = {}
    """Field of the task -> column name, or a template such as `"Q: {question}\\nA: "`."""


class TaskSpec(_Part):
    """What is learnt and how it is scored."""

    kind: str
    """`classify` (text -> label) or `sft` (prompt -> completion)."""
    metric: str | None = None
    """Primary metric; the task's own default if not given."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Smallest difference in the metric that you care about, in the metric's unit."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Rate of the task's fresh output layer, the same for every method; default: the setting's."""
    max_length: Annotated[int, Field(ge=8)] = 256
    """Longest example in tokens; longer ones are cut, and counted in a warning."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest generated answer; default: the longest completion in train, plus 8."""


class MethodsSpec(_Part):
    """Who competes."""

    control: str = "lora"
    """The method that the others are compared with."""
    contenders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Catalog names (`bakeoff methods`) or paths of method TOML files."""

    @model_validator(mode="after")
    def _distinct(self) -> MethodsSpec:
        names = (self.control, *self.contenders)
        double = {n for n in names if names.count(n) > 1}
        if double:
            raise ValueError(f"listed more than once: {', '.join(sorted(double))}")
        return self


class MethodSpec(_Part):
    """Overrides for one method, or (`kind = "peft"`) a method of your own."""

    kind: Literal["catalog", "peft"] = "catalog"
    """`peft`: made from `path` or from `peft` and `config`, under this table's name."""
    path: str | None = None
    """With `kind = "peft"`: PEFT's own `adapter_config.json`; relative to the study file."""
    peft: str | None = None
    """With `kind = "peft"`: a PEFT config class, such as `LoraConfig`."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Replaces the log grid around the catalog's prior; as many as `budget.settings`."""
    config: dict[str, Any] = {}
    """Arguments of the method's PEFT config class, e.g. `r = 16`."""

    @model_validator(mode="after")
    def _from_one_place(self) -> MethodSpec:
        given = [n for n in ("path", "peft") if getattr(self, n) is not None]
        if self.kind == "peft" and len(given) != 1:
            raise ValueError('kind = "peft" wants either `path` or `peft`')
        if self.kind == "catalog" and given:
            raise ValueError(f'`{given[0]}` wants kind = "peft"')
        return self


class BudgetSpec(_Part):
    """What every method gets, the control included."""

    match: Literal["defaults", "parameters"] = "defaults"
    """`defaults`, or `parameters`: every method at the size that trains as many as the control."""
    parameters: Annotated[int, Field(ge=1)] | None = None
    """With `match = "parameters"`: train about so many, the control too."""
    steps: Annotated[int, Field(ge=2)] = 300
    """Optimizer steps of each trial."""
    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Instead of `steps`: the whole study's time. A few timed steps of each method choose the
    steps; settings and seeds that are not given, and contenders, from the end of the list, follow.
    """
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples in each step."""
    settings: Annotated[int, Field(ge=1)] = 5
    """Settings that each method tries in the search phase: learning rates, or what `tune` says."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Seeds of each method's best setting in the final phase."""
    tune: Literal["learning_rate", "all"] = "learning_rate"
    """What settings differ in: the rate alone, or all that the catalog tunes (Optuna's sampler)."""
    race: OnOff = "on"
    """`on`: settings, and methods that are surely worse and no cheaper, stop at the rungs."""
    rungs: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (
        0.1,
        0.3,
    )
    """Shares of the steps at which search trials are compared."""
    extend: Annotated[int, Field(ge=0, le=5)] = 2
    """How often a method whose best learning rate lies at the edge of those tried gets one more."""
    select_on: Literal["loss", "metric"] = "loss"
    """What settings are chosen on, on validation: `loss` is less noisy."""
    warmup: Fraction = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    decay: Fraction = 0.3
    """Share of the steps over which it falls to 0 at the end (warm-up, stable, decay)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's, for all methods alike; 0 because it pulls scaling methods away from their base."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    validations: Annotated[int, Field(ge=1)] = 4
    """How often the validation loss is taken in a trial, the end included."""


class VerdictSpec(_Part):
    """What the recommendation and the Pareto front weigh; may change after the run."""

    prefer: Preference | dict[Preference, Weight] = "quality"
    """What to recommend for, or weights such as `{ quality = 1.0, memory = 0.5 }`."""
    pareto: tuple[Axis, ...] | None = None
    """Axes of the Pareto front, `quality` among them; default: all that were measured."""

    @field_validator("prefer", mode="before")
    @classmethod
    def _preference_is_known(cls, value: Any) -> Any:
        known = get_args(Preference)
        _refuse_unknown("preference", value, known)
        weights = value.values() if isinstance(value, dict) else ()
        readable = isinstance(value, str | dict)
        # pydantic's own words for a union name its branches, which help nobody
        if not readable or not all(isinstance(w, int | float) for w in weights):
            raise ValueError(f"one of {', '.join(known)}, or a table of numbers under these names")
        return value

    @field_validator("pareto", mode="before")
    @classmethod
    def _axes_are_known(cls, value: Any) -> Any:
        _refuse_unknown("axis", value, get_args(Axis))
        return value

    @model_validator(mode="after")
    def _weights_weigh(self) -> VerdictSpec:
        if isinstance(self.prefer, dict) and not any(self.prefer.values()):
            raise ValueError("prefer: no weight is above 0")
        return self

    @model_validator(mode="after")
    def _axes_make_a_front(self) -> VerdictSpec:
        axes = self.pareto
        if axes is None:
            return self
        if len(set(axes)) < len(axes):
            raise ValueError("pareto: an axis is listed more than once")
        if "quality" not in axes or len(axes) < 2:
            raise ValueError("pareto: it takes `quality` and at least one other axis")
        return self


def _refuse_unknown(what: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse unknown names in a text, a list or a table, with the near match."""
    names = (value,) if isinstance(value, str) else value
    for name in names if isinstance(names, list | tuple | dict) else ():
        if name not in known:
            near = near_match(str(name), known)
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {what} '{name}'; {hint}")


class EngineSpec(_Part):
    """How it is run; changes speed, and numbers only within rounding."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` takes bf16 where the hardware computes in it."""
    executor: str = "process"
    """`process` (a fresh process a group of trials) or `inline` (in this one: breakpoints work)."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Trials that run side by side."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each worker; default: the physical cores divided by the workers."""
    lanes: Literal["auto", "off"] | Annotated[int, Field(ge=1)] = "auto"
    """Trials of a method that share one step: `auto` (as many as there are), a limit, or `off`."""
    packing: Switch = "auto"
    """Examples lie end to end through the layers; `auto` where it agrees with padded batches."""
    loss: Switch = "auto"
    """Cross-entropy in chunks, at supervised tokens only; `auto` where the head is frozen."""
    lean_inputs: Switch = "auto"
    """PEFT layers make no fp32 copy of their input; `auto` in bf16."""
    compile: Switch = "auto"
    """One compiled layer serves all; `auto` on CUDA."""
    graphs: Switch = "auto"
    """A step is one CUDA graph; `auto` on CUDA."""
    evaluation_batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples in each evaluation batch."""

    @property
    def switches(self) -> dict[str, str]:
        """The accelerators by name, each `auto`, `on` or `off`."""
        named = {
            n: getattr(self, n) for n in ("packing", "loss", "lean_inputs", "compile", "graphs")
        }
        return {**named, "lanes": "off" if self.lanes == "off" else "auto"}

    @property
    def most_lanes(self) -> int | None:
        """The largest group of trials that share a step; None: no limit of the user's."""
        if isinstance(self.lanes, int):
            return self.lanes
        return 1 if self.lanes == "off" else None


class StudySpec(_Part):
    """One question: base model + data + budget + methods."""

    name: Name
    """Name of the study, and of its folder under `runs/`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Root of every random choice: splits, data order, initialisation, resampling."""
    base: BaseSpec
    data: DataSpec
    task: TaskSpec
    methods: MethodsSpec
    method: dict[str, MethodSpec] = {}
    budget: BudgetSpec = BudgetSpec()
    verdict: VerdictSpec = VerdictSpec()
    engine: EngineSpec = EngineSpec()

    @model_validator(mode="after")
    def _overrides_are_used(self) -> StudySpec:
        used = {method_name(m) for m in self.method_names}
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
    def _hours_or_steps(self) -> StudySpec:
        if self.budget.hours is not None and "steps" in self.budget.model_fields_set:
            raise ValueError("budget: either `steps` or `hours`; hours choose the steps")
        return self

    @model_validator(mode="after")
    def _target_is_used(self) -> StudySpec:
        if self.budget.parameters is not None and self.budget.match != "parameters":
            raise ValueError('budget.parameters needs budget.match = "parameters"')
        return self

    @property
    def method_names(self) -> tuple[str, ...]:
        """The control first, then the contenders in the user's order."""
        return (self.methods.control, *self.methods.contenders)


def method_name(given: str) -> str:
    """Return the name of a method that the study file gives as a catalog name or a TOML file."""
    return Path(given).stem if given.endswith(".toml") else given


def read_spec(path: Path) -> StudySpec:
    """Read and check a study file.

    Raises:
        UsageError: ``study-not-found``, ``study-unreadable``, ``study-invalid``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(
            "study-not-found",
            f"There is no study file {path}.",
            "`bakeoff init` writes one, or `bakeoff run --model M --data F` works without.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "study-unreadable", f"{path} cannot be read: {error}.", "a UTF-8 text file in TOML."
        ) from error
    try:
        return parse_spec(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            "study-unreadable", f"{path} is not TOML: {error}.", "mend that line."
        ) from error


def parse_spec(value: dict[str, Any]) -> StudySpec:
    """Check a study given as plain values.

    Raises:
        UsageError: ``study-invalid``, naming each key and, for an unknown one, the near match.
    """
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


def _keys_at(path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the keys that the spec knows under ``path``."""
    model: Any = StudySpec
    for part in path:
        model = model.model_fields[part].annotation if part in model.model_fields else MethodSpec
        model = MethodSpec if get_args(model) else model
    return tuple(model.model_fields)


def dump_spec(spec: StudySpec) -> dict[str, Any]:
    """Return the spec as plain values without the unset ones (TOML knows no null)."""
    return _without_none(spec.model_dump(mode="json"))


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {
        k: _without_none(v) if isinstance(v, dict) else v for k, v in value.items() if v is not None
    }
