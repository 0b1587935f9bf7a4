"""Results of trials, segments and cost probes, to and from JSON.

Workers return them, the database stores them, the analysis reads them. Standard library only.
A missing value is None, never a placeholder number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class Status(StrEnum):
    """How a trial ended; all but ``done`` come with a reason."""

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

    A prediction is None where the metric needs none (``loss``). ``cut`` is the number of answers
    that the limit of new tokens ended, None where nothing is generated.
    """

    scores: tuple[float, ...]
    predictions: tuple[str | None, ...]
    mean_loss: float | None
    cut: int | None = None


@dataclass(frozen=True)
class Forgetting:
    """Loss on general text before and after: sums over each document's ``tokens``, in nats.

    ``base_losses`` are those of the base model, ``losses`` those of the trial. ``divergences`` are
    Kullback-Leibler divergences of the trial's next-token distribution from the base model's.
    """

    tokens: tuple[int, ...]
    base_losses: tuple[float, ...]
    losses: tuple[float, ...]
    divergences: tuple[float, ...]


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial. ``splits`` is keyed by ``validation`` and ``test``.

    ``lanes`` is the number of trials in its group, including itself; its seconds are an equal share
    of the group's. The group is batched with vmap if the method's probe allows it, else its trials
    run sequentially. ``step`` is the last step. At a rung before the end, the status is ``stopped``
    without a reason, and ``item_losses`` holds each validation item's share of the mean loss (they
    average to it), in nats. ``initial_losses`` are the same before the first step, where measured.
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
    initial_losses: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """Its share of its groups' time for set-up, training and evaluation."""
        parts = (self.load_seconds, self.train_seconds, self.evaluation_seconds)
        return sum(part or 0.0 for part in parts)

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss: the curve's last point, else the split's mean."""
        last = self.curve[-1].validation_loss if self.curve else None
        if last is None and "validation" in self.splits:
            last = self.splits["validation"].mean_loss
        return last

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
                    k: SplitScores(
                        tuple(s["scores"]), tuple(s["predictions"]), s["mean_loss"], s.get("cut")
                    )
                    for k, s in value["splits"].items()
                },
                "warnings": tuple(value["warnings"]),
                "item_losses": tuple(value.get("item_losses", ())),
                "initial_losses": tuple(value.get("initial_losses", ())),
                "forgetting": _parse_forgetting(value.get("forgetting")),
            }
        )


def _parse_forgetting(value: dict[str, Any] | None) -> Forgetting | None:
    return Forgetting(**{k: tuple(v) for k, v in value.items()}) if value else None


@dataclass(frozen=True)
class SegmentResult:
    """The result of one segment: one result for each trial of its group.

    If the disk was full, ``disk_full`` has the error's text, there are no results, and no trial
    counts as failed.
    """

    results: tuple[TrialResult, ...]
    disk_full: str | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of a method, measured in a process of its own (the cost probe).

    ``memory_kind`` says what ``train_peak_bytes`` is: ``device`` = peak bytes allocated on the
    accelerator, including the base; ``rss_above_base`` = peak resident memory above that of the
    process with the base loaded (CPU). ``steps`` is the number of timed steps; times are medians
    over them. ``inference_milliseconds`` is a forward pass over one example with an unmerged
    adapter, ``inference_merged_milliseconds`` with a merged one. ``engine`` is the decision of the
    two-lane probe: ``switches`` by name, ``reasons`` for requested ones that are off, and
    ``token_bytes``, the memory of a packed token of one lane. ``lanes_ratio`` is the duration of a
    step of ``lanes_timed`` lanes in steps of a single one, None where that was not measured.
    ``probe_seconds`` is the duration of the probe by its parts.
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
    lanes_ratio: float | None = None
    lanes_timed: int | None = None
    probe_seconds: dict[str, float] | None = None

    def lanes_factor(self, lanes: int) -> float:
        """Return the duration of a step of ``lanes`` lanes, in steps of a single one.

        Between one and the timed number it is interpolated; not measured, lanes are separate steps.
        """
        if self.lanes_ratio is None or self.lanes_timed is None:
            return float(lanes)
        return 1 + (self.lanes_ratio - 1) * (lanes - 1) / (self.lanes_timed - 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuild a cost from ``to_json``."""
        return cls(**{**value, "status": Status(value["status"])})
