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

from bakeoff.core.trial import Trial


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
                "forgetting": _forgetting(value.get("forgetting")),
            }
        )


def _forgetting(value: dict[str, Any] | None) -> Forgetting | None:
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


@dataclass(frozen=True)
class MetricInfo:
    """What the study half must know of a metric: its name, direction, unit and range."""

    name: str
    better: str
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Reported:
    """What another tool reported of a method's one run: means, without the items behind them.

    ``n`` counts the test items that ``score`` is the share of; None where no error can be known
    from it. ``figures`` are its other numbers under the names that its tool gives them.
    """

    score: float | None
    n: int | None
    forgetting: float | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """Where a record comes from that this machine did not measure.

    ``no_interval`` says why no interval can be known, None where there are some; ``differing`` maps
    each training parameter that was not the same for all methods to its values, with the number of
    methods that had each.
    """

    source: str
    benchmark: str
    reported: dict[str, Reported]
    no_interval: str | None
    differing: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Asked:
    """What a test item asks and its true answer, as a person reads them."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class StudyRecord:
    """All that a study has written so far: the one input of analysis and report.

    ``trials`` pairs every planned trial known so far with its result, None while it is missing.
    ``methods`` lists the study's methods in the order of the study file, control included;
    ``titles`` maps a method to how people write it (``lora`` -> ``LoRA``).
    """

    name: str
    base: str
    base_note: str | None
    task: str
    metric: MetricInfo
    margin: float
    control: str
    methods: tuple[str, ...]
    titles: dict[str, str]
    n_items: dict[str, int]
    steps: int
    trials: tuple[tuple[Trial, TrialResult | None], ...]
    costs: dict[str, Cost]
    incompatible: dict[str, str]
    wall_seconds: float | None
    warnings: tuple[str, ...]
    provenance: dict[str, Any]
    race: dict[str, Any] | None = None
    """``rungs`` (steps), ``seeds`` of the final phase, the ``decisions`` taken; None: no race."""
    sizes: list[dict[str, Any]] | None = None
    """Each method's size, where the study wanted equal trainable parameters."""
    looks: tuple[dict[str, Any], ...] = ()
    """Looks at test after the first: ``at`` (ISO 8601), ``changes`` (lines), ``seeds`` before."""
    retried: tuple[dict[str, Any], ...] = ()
    """What failed and was tried again: ``at``, ``phase``, ``method``, ``trial_id``, ``seed``,
    ``setting``, and the ``status`` and ``reason`` before."""
    hours: dict[str, Any] | None = None
    """What the study's hours bought (``hours.Fit``); None where its budget is in steps."""
    settings: int | None = None
    """Settings that every method was given; one at the edge of its grid got more."""
    select_on: str = "loss"
    """What settings are chosen on, on validation: ``loss`` or ``metric``."""
    prefer: str | dict[str, float] = "quality"
    """What the recommendation is for: one word, or weights."""
    pareto: tuple[str, ...] | None = None
    """Axes of the Pareto front; None: all that were measured."""
    base_scores: SplitScores | None = None
    """The untouched base on the test items; None where the task gives it a fresh output layer."""
    secondary: tuple[str, ...] = ()
    """Numbers beside the metric that the task asks for, such as ``macro_f1``."""
    references: tuple[str, ...] = ()
    """The true answer of each test item, where a secondary number needs them."""
    serving: dict[str, str | None] = field(default_factory=dict)
    """How each method can be served: ``adapter`` (saved as plain LoRA), ``converted`` (to LoRA
    without loss), ``merged``, or None for not at all; a method that was not probed is absent."""
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each method one final trial's saved weights, loaded anew: ``trial_id``, ``seed``, ``path``
    in the study's folder, its validation ``loss`` as trained and ``reloaded_loss`` in nats, whether
    they are the ``same``, or the ``error``."""
    imported: Imported | None = None
    """What another tool reported, where it ran the study; None for our own."""
    examples: bool = True
    """Whether the report may show test items and answers to them."""
    asked: tuple[Asked, ...] = ()
    """What each test item asks, in the order of the scores; empty where it is not known."""
    asked_unknown: str | None = None
    """Why ``asked`` is empty although there are scores, where that is known."""
