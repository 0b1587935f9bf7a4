"""The unit of work as the plan writes it and a worker reads it: Trial and Segment.

Stands between the two halves, below both: the plan makes trials, an executor carries segments to a
worker, ``segment.run_segment`` trains them. Standard library only, JSON in and out, never pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

LEARNING_RATE = "learning_rate"
DESCRIPTIVE_FIELDS = (
    "title",
    "family",
    "mechanism",
    "paper",
    "learning_rate_why",
    "tuning",
    "size",
)
"""What a method's entry says beside what it does: no part of a trial's identity."""


@dataclass(frozen=True)
class MethodEntry:
    """A method as data: what the catalog (or the user) says of it.

    ``peft`` names a PEFT config class and ``config`` holds its keyword arguments; ``hook`` names
    the code of a method that needs some; at least one of them is set. ``needs`` says why a method
    cannot be trained alone. ``rates`` maps a part of a parameter's name to a factor on the
    learning rate, ``tuning`` an argument to ``{"values": [...], "why": ...}``; ``size`` tells which
    argument changes the number of trained parameters.
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


@dataclass(frozen=True)
class Conditions:
    """What every trial of a study shares; equal conditions are what makes scores comparable.

    ``data`` maps a split to the sha256 of its file. ``validations`` is how often the validation
    loss is taken, evenly spaced, the last one at the end. ``fingerprint`` is that of the base's
    files, None for a hub id; ``quantize`` and ``quantizer`` say how its linear layers are rounded
    and by which package, None where they are not. ``metric_source`` is the sha256 of the file with
    the user's own metric, None for one of bakeoff's. ``trusted``: the base's own code may run.
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


@dataclass(frozen=True)
class Trial:
    """One training run: (method, setting, seed) under the study's conditions.

    ``phase`` is ``search`` (settings are chosen, validation only) or ``final`` (scored on test).
    ``setting`` always holds ``learning_rate``; its other keys override the method's config.
    """

    method: MethodEntry
    setting: dict[str, Any]
    seed: int
    phase: str
    conditions: Conditions

    @cached_property
    def id(self) -> str:
        """Hash of everything that determines the result: the same trial has the same id."""
        spec = self.to_json()
        for prose in DESCRIPTIVE_FIELDS:
            del spec["method"][prose]
        if not self.conditions.trusted:  # the ids of trials from before it was there
            del spec["conditions"]["trusted"]
        canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def learning_rate(self) -> float:
        """The peak learning rate of this trial."""
        return float(self.setting[LEARNING_RATE])

    @property
    def config(self) -> dict[str, Any]:
        """The method's keyword arguments: its defaults with this setting's overrides."""
        overrides = {k: v for k, v in self.setting.items() if k != LEARNING_RATE}
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
    """Train a group of trials from step ``start`` to ``stop``, then score: the unit of work.

    A group shares method, parameter shapes and batches. ``folder`` is the study folder; a worker
    writes only inside ``folder/trials/<id>``. ``base_path`` is where the base's files lie on this
    machine: not part of a trial's identity. Nor is ``engine``: the accelerators that are on, and
    the bytes that a packed token takes, as the method's probe found them; None: all off. ``scored``
    says whether search trials are scored by the metric, on validation, where it ends.
    """

    trials: tuple[Trial, ...]
    start: int
    stop: int
    folder: str
    base_path: str
    engine: dict[str, Any] | None = None
    scored: bool = False

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
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a segment from ``to_json``."""
        return cls(**{**value, "trials": tuple(Trial.from_json(t) for t in value["trials"])})
