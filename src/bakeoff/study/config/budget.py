"""Who competes, at what budget, and what is read out: `[methods]`, `[budget]`, `[verdict]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from bakeoff.core.names import invalid_name_reason
from bakeoff.study.config.base import LARGEST, Count, Fraction, Reference, SpecTable, reject_unknown

OnOff = Literal["on", "off"]
Preference = Literal["quality", "memory", "speed", "size", "serving"]
Axis = Literal["quality", "memory", "speed", "size", "forgetting"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


MOST_TRIALS = 1000
"""Of one method in a phase."""


def method_name(given: str) -> str:
    """Return the name of a method that the study file gives as a catalog name or a TOML file."""
    return Path(given).stem if given.endswith(".toml") else given


class MethodsSpec(SpecTable):
    """Who competes."""

    control: Reference = "lora"
    """The method that the others are compared with."""
    contenders: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=1000)]
    """Catalog names (`bakeoff methods`) or paths of method TOML files."""

    @model_validator(mode="after")
    def _distinct(self) -> MethodsSpec:
        names = (self.control, *self.contenders)
        for name in map(method_name, names):
            if (why := invalid_name_reason(name)) is not None:
                raise ValueError(f"'{name[:80]}' cannot be a method's name: {why}")
        double = {n for n in names if names.count(n) > 1}
        if double:
            raise ValueError(f"listed more than once: {', '.join(sorted(double))}")
        return self


class MethodSpec(SpecTable):
    """Overrides for one method, or (`kind = "peft"`) a method of your own."""

    kind: Literal["catalog", "peft"] = "catalog"
    """`peft`: made from `path` or from `peft` and `config`, under this table's name."""
    path: Reference | None = None
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


class BudgetSpec(SpecTable):
    """What every method gets, the control included."""

    match: Literal["defaults", "parameters"] = "defaults"
    """`defaults`, or `parameters`: every method at the size that trains as many as the control."""
    parameters: Count | None = None
    """With `match = "parameters"`: train about so many, the control too."""
    steps: Annotated[int, Field(ge=2, le=LARGEST)] = 300
    """Optimizer steps of each trial."""
    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Instead of `steps`: the whole study's time. A few timed steps of each method choose the
    steps; settings and seeds that are not given, and contenders, from the end of the list, follow.
    """
    batch_size: Count = 16
    """Examples in each step."""
    settings: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 5
    """Settings that each method tries in the search phase: learning rates, or what `tune` says."""
    seeds: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 3
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
    validations: Annotated[int, Field(ge=1, le=100_000)] = 4
    """How often the validation loss is taken in a trial, the end included."""


class VerdictSpec(SpecTable):
    """What the recommendation and the Pareto front weigh; may change after the run."""

    prefer: Preference | dict[Preference, Weight] = "quality"
    """What to recommend for, or weights such as `{ quality = 1.0, memory = 0.5 }`."""
    pareto: tuple[Axis, ...] | None = None
    """Axes of the Pareto front, `quality` among them; default: all that were measured."""

    @field_validator("prefer", mode="before")
    @classmethod
    def _preference_is_known(cls, value: Any) -> Any:
        known = get_args(Preference)
        reject_unknown("preference", value, known)
        weights = value.values() if isinstance(value, dict) else ()
        readable = isinstance(value, str | dict)
        # pydantic's own words for a union name its branches, which help nobody
        if not readable or not all(isinstance(w, int | float) for w in weights):
            raise ValueError(f"one of {', '.join(known)}, or a table of numbers under these names")
        return value

    @field_validator("pareto", mode="before")
    @classmethod
    def _axes_are_known(cls, value: Any) -> Any:
        reject_unknown("axis", value, get_args(Axis))
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
