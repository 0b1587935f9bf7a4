"""The record of a study that the analysis reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bakeoff.core.results import Cost, SplitScores, TrialResult
from bakeoff.core.trial import Trial


@dataclass(frozen=True)
class MetricInfo:
    """What the study half must know of a metric: its name, direction, unit and range."""

    name: str
    better: str
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ImportedScores:
    """What another tool reported of a method's one run: means, without the items behind them.

    ``n`` counts the test items that ``score`` is the share of; None where no error can be known
    from it. ``figures`` are its other numbers under the names that its tool gives them.
    """

    score: float | None
    n: int | None
    forgetting: float | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class ImportedStudy:
    """Where a record comes from that this machine did not measure.

    ``no_interval`` says why no interval can be known, None where there are some; ``differing`` maps
    each training parameter that was not the same for all methods to its values, with the number of
    methods that had each.
    """

    source: str
    benchmark: str
    reported: dict[str, ImportedScores]
    no_interval: str | None
    differing: dict[str, dict[str, int]]


@dataclass(frozen=True)
class ItemText:
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
    imported: ImportedStudy | None = None
    """What another tool reported, where it ran the study; None for our own."""
    examples: bool = True
    """Whether the report may show test items and answers to them."""
    asked: tuple[ItemText, ...] = ()
    """What each test item asks, in the order of the scores; empty where it is not known."""
    asked_unknown: str | None = None
    """Why ``asked`` is empty although there are scores, where that is known."""
