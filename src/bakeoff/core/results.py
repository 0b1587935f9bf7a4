"""What the machine writes: frozen results, to and from JSON.

Stands between the two halves: a worker of the training half returns these, the store of the study
half keeps them, analysis reads them. Imports nothing but the standard library, so it loads on a
bare GPU machine and on a laptop without torch. Absence is None; there are no stand-in numbers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class Status(StrEnum):
    """How a trial ended; everything but ``done`` carries a reason."""

    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    INCOMPATIBLE = "incompatible"
    OUT_OF_MEMORY = "out_of_memory"
    STOPPED = "stopped"


@dataclass(frozen=True)
class CurvePoint:
    """One point of a learning curve.

    ``train_loss`` is the mean over the steps since the previous point, ``validation_loss`` the
    mean over supervised tokens (or items) of the validation split; both in nats.
    """

    step: int
    train_loss: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class SplitScores:
    """The primary metric of every item of one split, in the order of the split's file.

    A prediction is None where the metric needs none (``loss``).
    """

    scores: tuple[float, ...]
    predictions: tuple[str | None, ...]
    mean_loss: float | None


@dataclass(frozen=True)
class Forgetting:
    """What a trial forgot: sums over each general document's predicted ``tokens``, in nats.

    ``base_losses`` and ``losses`` are the pristine base's and the trial's, ``divergences`` the
    Kullback-Leibler divergence of the trial's next-token distribution from the base's.
    """

    tokens: tuple[int, ...]
    base_losses: tuple[float, ...]
    losses: tuple[float, ...]
    divergences: tuple[float, ...]


@dataclass(frozen=True)
class TrialResult:
    """What one trial gave. ``splits`` is keyed by ``validation`` and ``test``.

    ``lanes`` counts the trials of its group, itself included; its seconds are its equal share of
    theirs. They shared its steps where the method's probe left lanes on, else they took turns.
    ``step`` is where it stands; at a rung before the end its status is ``stopped`` without a reason
    and ``item_losses`` holds each validation item's share of the mean loss there (they average to
    it), in nats.
    """

    trial_id: str
    status: Status
    reason: str | None = None
    traceback: str | None = None
    curve: tuple[CurvePoint, ...] = ()
    splits: dict[str, SplitScores] = field(default_factory=dict)
    trainable_parameters: int | None = None
    adapter_bytes: int | None = None
    train_tokens: int | None = None
    diverged_at_step: int | None = None
    train_seconds: float | None = None
    evaluation_seconds: float | None = None
    load_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    lanes: int | None = None
    step: int | None = None
    item_losses: tuple[float, ...] = ()
    forgetting: Forgetting | None = None

    @property
    def seconds(self) -> float:
        """Its share of the time that its groups took, building, training and evaluating."""
        parts = (self.load_seconds, self.train_seconds, self.evaluation_seconds)
        return sum(part or 0.0 for part in parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a result from ``to_json``."""
        return cls(
            **{
                **value,
                "status": Status(value["status"]),
                "curve": tuple(CurvePoint(**p) for p in value["curve"]),
                "splits": {
                    k: SplitScores(tuple(s["scores"]), tuple(s["predictions"]), s["mean_loss"])
                    for k, s in value["splits"].items()
                },
                "warnings": tuple(value["warnings"]),
                "item_losses": tuple(value.get("item_losses", ())),
                "forgetting": _parse_forgetting(value.get("forgetting")),
            }
        )


def _parse_forgetting(value: dict[str, Any] | None) -> Forgetting | None:
    return Forgetting(**{k: tuple(v) for k, v in value.items()}) if value else None


@dataclass(frozen=True)
class SegmentResult:
    """What one segment gave: a result for each trial of its group.

    Where ``disk_full`` says how the disk was full there are none, and no trial failed of it.
    """

    results: tuple[TrialResult, ...]
    disk_full: str | None = None


@dataclass(frozen=True)
class Cost:
    """What a method costs, measured alone in its own process (the cost probe).

    ``memory_kind`` says what ``train_peak_bytes`` is: ``device`` = peak bytes allocated on the
    accelerator, base included; ``rss_above_base`` = peak resident memory above that of the process
    with the base loaded (CPU). ``steps`` counts the timed steps; times are medians over them.
    ``inference_milliseconds`` is a forward pass over one example, the adapter apart or merged.
    ``engine`` is what the two-lane probe decided for the method: ``switches`` by name, ``reasons``
    for those that are off though wished, and ``token_bytes`` a packed token of one lane takes.
    """

    method: str
    status: Status
    reason: str | None = None
    trainable_parameters: int | None = None
    train_tokens_per_second: float | None = None
    step_milliseconds: float | None = None
    train_peak_bytes: int | None = None
    base_bytes: int | None = None
    memory_kind: str | None = None
    steps: int | None = None
    tokens_per_step: float | None = None
    inference_milliseconds: float | None = None
    inference_merged_milliseconds: float | None = None
    engine: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a cost from ``to_json``."""
        return cls(**{**value, "status": Status(value["status"])})
