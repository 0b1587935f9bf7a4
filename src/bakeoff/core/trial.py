"""Trial and Segment: the units of work that the study plans and a worker runs.

Standard library only. They cross processes as JSON and are never pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

LEARNING_RATE = "learning_rate"
HEAD_FACTOR = "head_factor"
"""Key of a setting: a factor on the study's learning rate of the output layer."""
RATE_KEYS = (LEARNING_RATE, HEAD_FACTOR)
"""Keys of a setting that change no shape: such settings train together in lanes."""
REPLICATE = "replicate"
"""Phase of a trial that races with the other settings of its seed, and is scored on test if it is
the best of them. Studies of an older protocol have ``search`` and ``final`` trials."""
FINAL = "final"
"""Phase of a trial of an older protocol: the chosen setting at a fresh seed, scored on test."""
DESCRIPTIVE_FIELDS = (
    "title",
    "family",
    "mechanism",
    "paper",
    "learning_rate_why",
    "base_parameters",
    "tuning",
    "size",
)
"""Fields of a method's entry that only describe it: not part of a trial's id."""


@dataclass(frozen=True)
class MethodEntry:
    """A method as data: an entry of the catalog, or the user's own.

    ``peft`` names a PEFT config class and ``config`` holds its keyword arguments; ``hook`` names
    the code of a method that needs some; at least one of them is set. ``needs`` is the reason why a
    method cannot be trained by itself. ``rates`` maps a part of a parameter's name to a factor on
    the learning rate, ``tuning`` an argument to ``{"values": [...], "why": ...}``; ``size`` says
    which argument changes the number of trainable parameters. ``learning_rate`` is meant for a base
    of ``base_parameters`` parameters; None: for any base.
    """

    name: str
    title: str
    family: str
    mechanism: str
    paper: str | None
    peft: str | None
    hook: str | None
    config: dict[str, Any]
    learning_rate: float
    learning_rate_why: str
    needs: str | None = None
    rates: dict[str, float] = field(default_factory=dict)
    tuning: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: dict[str, Any] | None = None
    base_parameters: float | None = None


@dataclass(frozen=True)
class Conditions:
    """The conditions that all trials of a study share, so that their scores are comparable.

    ``data`` maps a split to the sha256 of its file. ``validations`` is the number of validation
    passes, evenly spaced, the last one at the end. ``fingerprint`` is that of the base's files,
    None for a hub id. ``quantize`` and ``quantizer`` are the kind of quantization of its linear
    layers and the package that does it, None without quantization. ``metric_source`` is the sha256
    of the file with the user's own metric, None for a built-in one. ``trusted``: the base's own
    code may run. ``head_learning_rate`` is that of a new output layer, ``saved_learning_rate`` that
    of modules of the base that are trained as a whole beside an adapter; None: the method's own.
    """

    base: str
    revision: str | None
    task: str
    task_options: dict[str, Any]
    metric: str
    data: dict[str, str]
    steps: int
    batch_size: int
    evaluation_batch_size: int
    warmup: float
    decay: float
    weight_decay: float
    clip: float
    head_learning_rate: float | None
    validations: int
    device: str
    precision: str
    threads: int
    fingerprint: str | None = None
    quantize: str | None = None
    quantizer: str | None = None
    metric_options: dict[str, Any] = field(default_factory=dict)
    metric_source: str | None = None
    general_length: int | None = None
    trusted: bool = False
    saved_learning_rate: float | None = None


@dataclass(frozen=True)
class Trial:
    """One training run: a method, a hyperparameter setting and a seed under the study's conditions.

    ``phase`` is ``replicate``; in studies of an older protocol ``search`` (settings are chosen,
    validation only) or ``final`` (scored on test).
    ``setting`` always holds ``learning_rate``; its other keys override the method's config.
    """

    method: MethodEntry
    setting: dict[str, Any]
    seed: int
    phase: str
    conditions: Conditions

    @cached_property
    def id(self) -> str:
        """Hash of everything that determines the result: equal trials have equal ids."""
        spec = self.to_json()
        for prose in DESCRIPTIVE_FIELDS:
            del spec["method"][prose]
        if not self.conditions.trusted:  # keeps the ids of trials that are older than the field
            del spec["conditions"]["trusted"]
        if self.conditions.saved_learning_rate is None:
            del spec["conditions"]["saved_learning_rate"]
        canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def learning_rate(self) -> float:
        """The peak learning rate of this trial."""
        return float(self.setting[LEARNING_RATE])

    @property
    def head_learning_rate(self) -> float:
        """The peak learning rate of the task's output layer."""
        of_study = self.conditions.head_learning_rate
        rate = self.learning_rate if of_study is None else of_study
        return float(rate * self.setting.get(HEAD_FACTOR, 1.0))

    @property
    def config(self) -> dict[str, Any]:
        """The method's keyword arguments: its defaults with this setting's overrides."""
        overrides = {k: v for k, v in self.setting.items() if k not in RATE_KEYS}
        return {**self.method.config, **overrides}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a trial from ``to_json``."""
        return cls(
            method=MethodEntry(**value["method"]),
            setting=value["setting"],
            seed=value["seed"],
            phase=value["phase"],
            conditions=Conditions(**value["conditions"]),
        )


@dataclass(frozen=True)
class Segment:
    """A unit of work: train a group of trials from step ``start`` to ``stop``, then score them.

    A group shares method, parameter shapes and batches. ``folder`` is the study folder; a worker
    writes only to ``folder/trials/<id>``. ``base_path`` is the location of the base's files on this
    machine, ``engine`` the probe's result for the method (accelerators that are on, bytes of a
    packed token; None: all off); neither is part of a trial's id. ``scored``: whether the trials
    are scored by the metric on validation at the end. ``initial``: whether their validation losses
    are measured before the first step. ``test``: whether they are scored on test at the end, and
    their weights saved; None stands for final trials. A segment that starts at the last step trains
    nothing and only scores.
    """

    trials: tuple[Trial, ...]
    start: int
    stop: int
    folder: str
    base_path: str
    engine: dict[str, Any] | None = None
    scored: bool = False
    initial: bool = False
    test: bool | None = None

    @property
    def scores_test(self) -> bool:
        """Whether the trials are scored on test, and their weights saved."""
        return self.trials[0].phase == "final" if self.test is None else self.test

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "trials": [t.to_json() for t in self.trials],
            "start": self.start,
            "stop": self.stop,
            "folder": self.folder,
            "base_path": self.base_path,
            "engine": self.engine,
            "scored": self.scored,
            "initial": self.initial,
            "test": self.test,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a segment from ``to_json``."""
        return cls(**{**value, "trials": tuple(Trial.from_json(t) for t in value["trials"])})
