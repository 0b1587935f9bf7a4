"""The methods, their budget and the verdict: `[methods]`, `[budget]`, `[verdict]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from bakeoff.core.names import invalid_name_reason
from bakeoff.study.config.base import LARGEST, Count, Fraction, Reference, SpecTable, reject_unknown

OnOff = Literal["on", "off"]
Preference = Literal["quality", "memory", "speed", "size", "serving"]
ParetoAxis = Literal["quality", "memory", "speed", "size", "forgetting"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


USUAL_STEPS = 300
"""Steps of a trial, unless the number of training rows or a time budget asks for others."""
MOST_TRIALS = 1000
"""Largest number of trials of one method in a phase."""


def method_name(reference: str) -> str:
    """Return a method's name, given its catalog name or the path of its TOML file."""
    return Path(reference).stem if reference.endswith(".toml") else reference


class MethodsSpec(SpecTable):
    """The methods that are compared."""

    control: Reference = "lora"
    """The method that the others are compared with."""
    contenders: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=1000)]
    """Catalog names (`bakeoff methods`) or paths of method TOML files."""

    @model_validator(mode="after")
    def _check_names(self) -> MethodsSpec:
        names = (self.control, *self.contenders)
        for name in map(method_name, names):
            if (reason := invalid_name_reason(name)) is not None:
                raise ValueError(f"'{name[:80]}' cannot be a method's name: {reason}")
        duplicates = {n for n in names if names.count(n) > 1}
        if duplicates:
            raise ValueError(f"listed more than once: {', '.join(sorted(duplicates))}")
        return self


class MethodSpec(SpecTable):
    """Overrides for one method, or (`kind = "peft"`) a method of your own."""

    kind: Literal["catalog", "peft"] = "catalog"
    """`peft`: built from `path`, or from `peft` and `config`, under this table's name."""
    path: Reference | None = None
    """With `kind = "peft"`: PEFT's own `adapter_config.json`; relative to the study file."""
    peft: str | None = None
    """With `kind = "peft"`: a PEFT config class, such as `LoraConfig`."""
    like: Reference | None = None
    """Another method, with this table's name for it, its learning rates and its `config`."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Replaces the log grid around the catalog's prior; as many as `budget.settings`."""
    config: dict[str, Any] = {}
    """Arguments of the method's PEFT config class, e.g. `r = 16`."""

    @model_validator(mode="after")
    def _check_source(self) -> MethodSpec:
        sources = [n for n in ("path", "peft") if getattr(self, n) is not None]
        if self.kind == "peft" and len(sources) != 1:
            raise ValueError('kind = "peft" needs either `path` or `peft`')
        if self.kind == "catalog" and sources:
            raise ValueError(f'`{sources[0]}` needs kind = "peft"')
        if self.kind == "peft" and self.like is not None:
            raise ValueError('either kind = "peft" or `like`')
        return self


class BudgetSpec(SpecTable):
    """The budget of every method, including the control."""

    match: Literal["defaults", "parameters"] = "defaults"
    """`parameters`: every method has as many trainable parameters as the control."""
    parameters: Count | None = None
    """With `match = "parameters"`: the number of trainable parameters, for the control, too."""
    steps: Annotated[int, Field(ge=2, le=LARGEST)] | None = None
    """Optimizer steps of each trial. Default: 300, but at least one pass over the training rows and
    at most 20 passes (docs/studies.md)."""
    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Instead of `steps`: the time of the whole study. A few timed steps of each method determine
    the steps, then unset settings and seeds, then the contenders, dropped from the end of the list.
    """
    batch_size: Count = 16
    """Examples in each step."""
    settings: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 5
    """Hyperparameter settings that each method tries in the search phase (see `tune`)."""
    seeds: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | Literal["rounds"] = "rounds"
    """Replicates of each method: every seed repeats the whole procedure, the race of the settings
    included. `rounds`: replicates are added until a verdict is reached, or up to `most`. A number:
    that many, analysed once."""
    most: Annotated[int, Field(ge=2, le=MOST_TRIALS)] | None = None
    """With `seeds = "rounds"`: the largest number of replicates. Default: 16 where 16 lanes take
    less than three times the step of one, as the cost probe finds on a GPU; else 8."""
    tune: Literal["learning_rate", "all"] = "learning_rate"
    """What settings differ in: only the rate, or all that the catalog tunes (Optuna's sampler)."""
    race: OnOff = "on"
    """`on`: settings, and methods that are clearly worse and no cheaper, stop at the rungs."""
    rungs: (
        Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] | None
    ) = None
    """Shares of the steps at which the settings of a replicate are compared. Default: 0.1; 0.1 and
    0.3 for two entries of `keep`."""
    keep: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_TRIALS)], ...], Field(min_length=1)
    ] = (2,)
    """How many settings of a replicate go on after each rung. `[2, 1]` costs a third less for a
    large base and finds the best rate less often."""
    extend: Annotated[int, Field(ge=0, le=8)] = 4
    """How many more rates a method gets while its best learning rate is at the edge of its grid."""
    select_on: Literal["loss", "metric"] = "loss"
    """The validation value that settings are selected on: `loss` is less noisy."""
    warmup: Fraction = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    decay: Fraction = 0.3
    """Share of the steps over which it falls to 0 at the end (warm-up, stable, decay)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's, the same for all methods; 0 because it pulls scaling methods away from the base."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    validations: Annotated[int, Field(ge=1, le=100_000)] = 4
    """How often the validation loss is computed in a trial, including the end."""

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of each trial; ``USUAL_STEPS`` until the rows or the hours decide."""
        return self.steps or USUAL_STEPS

    @property
    def rung_shares(self) -> tuple[float, ...]:
        """The shares of the steps at which settings are compared, ascending."""
        if self.rungs is None:
            return (0.1,) if len(self.keep) == 1 else (0.1, 0.3)
        return tuple(sorted(self.rungs))

    @model_validator(mode="after")
    def _check_race(self) -> BudgetSpec:
        if self.most is not None and self.seeds != "rounds":
            raise ValueError('`most` needs seeds = "rounds"')
        if len(self.keep) > 2 and self.rungs is None:
            raise ValueError("`keep` has more than two entries: `rungs` must list as many")
        if self.rungs is not None and len(self.keep) > len(self.rungs):
            raise ValueError("`keep` has more entries than `rungs`")
        if list(self.keep) != sorted(self.keep, reverse=True):
            raise ValueError("`keep` may not grow from one rung to the next")
        return self


class VerdictSpec(SpecTable):
    """What the recommendation and the Pareto front consider; may change after the run."""

    prefer: Preference | dict[Preference, Weight] = "quality"
    """The objective of the recommendation, or weights such as `{ quality = 1.0, memory = 0.5 }`."""
    pareto: tuple[ParetoAxis, ...] | None = None
    """Axes of the Pareto front, including `quality`; default: all that were measured."""
    check_head: bool = True
    """Train the control and one contender again at a third and three times of the output layer's
    learning rate, to see whether the verdict depends on it (classification only)."""

    @field_validator("prefer", mode="before")
    @classmethod
    def _check_preference(cls, value: Any) -> Any:
        known = get_args(Preference)
        reject_unknown("preference", value, known)
        weights = value.values() if isinstance(value, dict) else ()
        readable = isinstance(value, str | dict)
        # pydantic's own message for a union would list its branches
        if not readable or not all(isinstance(w, int | float) for w in weights):
            raise ValueError(f"one of {', '.join(known)}, or a table of numbers under these names")
        return value

    @field_validator("pareto", mode="before")
    @classmethod
    def _check_axes(cls, value: Any) -> Any:
        reject_unknown("axis", value, get_args(ParetoAxis))
        return value

    @model_validator(mode="after")
    def _check_weights(self) -> VerdictSpec:
        if isinstance(self.prefer, dict) and not any(self.prefer.values()):
            raise ValueError("prefer: no weight is above 0")
        return self

    @model_validator(mode="after")
    def _check_front(self) -> VerdictSpec:
        axes = self.pareto
        if axes is None:
            return self
        if len(set(axes)) < len(axes):
            raise ValueError("pareto: an axis is listed more than once")
        if "quality" not in axes or len(axes) < 2:
            raise ValueError("pareto: it takes `quality` and at least one other axis")
        return self
