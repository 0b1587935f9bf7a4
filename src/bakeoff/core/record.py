"""The record of a study: the input of analysis and report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bakeoff.core.results import Cost, SplitScores, TrialResult
from bakeoff.core.trial import Trial


@dataclass(frozen=True)
class MetricInfo:
    """A metric as study and report need it: its name, direction, unit and range."""

    name: str
    better: str
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ImportedScores:
    """Means that another tool reported for one run of a method, without scores per item.

    ``n`` is the number of test items if ``score`` is a share of them; None if no error can be
    derived from it. ``figures`` holds the tool's other numbers under its own names.
    """

    score: float | None
    n: int | None
    forgetting: float | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class ImportedStudy:
    """The origin and contents of a record that another tool measured.

    ``no_interval`` is the reason why there are no confidence intervals, None if there are.
    ``differing`` maps each training parameter that was not the same for all methods to its values
    and the number of methods with each.
    """

    source: str
    benchmark: str
    reported: dict[str, ImportedScores]
    no_interval: str | None
    differing: dict[str, dict[str, int]]


@dataclass(frozen=True)
class ItemText:
    """The prompt of a test item and its true answer, as plain text."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class ConstantAnswer:
    """Test scores of answers that need no learning, one score for each item.

    ``kind`` is ``constant`` (the same ``answer`` for every item), ``chance`` (a choice at random)
    or ``frequencies`` (each label with its share of the training rows, for losses).
    """

    kind: str
    answer: str | None
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """Everything that a study has recorded so far.

    ``trials`` pairs every planned trial with its result, None until it has one. ``methods`` lists
    the study's methods in the order of the study file, including the control; ``titles`` maps a
    method to its display name (``lora`` -> ``LoRA``).
    """

    # The question: what is compared, at which budget, and by which rules
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
    settings: int | None = None
    """Hyperparameter settings of every method; grids that were extended at an edge have more."""
    select_on: str = "loss"
    """What settings are chosen by, on validation: ``loss`` or ``metric``."""
    prefer: str | dict[str, float] = "quality"
    """The objective of the recommendation: one word, or weights."""
    pareto: tuple[str, ...] | None = None
    """Axes of the Pareto front; None: all measured ones."""
    sizes: list[dict[str, Any]] | None = None
    """Each method's size, if the study asks for equal trainable parameters."""
    hours: dict[str, Any] | None = None
    """The plan for a time budget (``BudgetPlan``); None if the budget is in steps."""
    secondary: tuple[str, ...] = ()
    """Secondary metrics of the task, such as ``macro_f1``."""
    references: tuple[str, ...] = ()
    """The true answer of each test item, if a secondary metric needs them."""
    groups: tuple[int, ...] | None = None
    """The number of each test item's group; None: every item is its own."""
    group_source: str | None = None
    """What the items of a group have in common, such as ``column 'template'``."""

    # Trials and scores
    trials: tuple[tuple[Trial, TrialResult | None], ...]
    base_scores: SplitScores | None = None
    """The base model (not fine-tuned) on test; None if the task gives it a new output layer."""
    constant: ConstantAnswer | None = None
    """The best answer that needs no learning, on test; None if it was not scored."""
    weights: dict[str, str] = field(default_factory=dict)
    """By trial id, a hash of the saved weights."""
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By method, the check of one final trial's saved weights after reloading them: ``trial_id``,
    ``seed``, ``path`` in the study folder, validation ``loss`` as trained and ``reloaded_loss`` in
    nats, whether they are the ``same``, or the ``error``."""
    head: dict[str, Any] | None = None
    """The learning rate of a classifier's output layer: ``learning_rate``, ``source``, the ``grid``
    it was chosen from, and by contender the shifts that were ``checked``; None without a head."""
    imported: ImportedStudy | None = None
    """Results that another tool reported; None if bakeoff ran the study."""
    examples: bool = True
    """Whether the report may show test items and predictions."""
    asked: tuple[ItemText, ...] = ()
    """The text of each test item, in the order of the scores; empty if unknown."""
    asked_unknown: str | None = None
    """The reason why ``asked`` is empty although there are scores, if known."""

    # Costs of the methods
    costs: dict[str, Cost]
    incompatible: dict[str, str]
    serving: dict[str, str | None] = field(default_factory=dict)
    """How each method can be served: ``adapter`` (saved as plain LoRA), ``converted`` (to LoRA
    without loss), ``merged``, or None (not at all). Methods that were not probed are absent."""
    wall_seconds: float | None

    # History: decisions and repeated work
    race: dict[str, Any] | None = None
    """``rungs`` (steps), ``decisions``, and the ``first_rung``; None without racing."""
    test_reads: tuple[dict[str, Any], ...] = ()
    """Test-set evaluations after the first: ``at`` (ISO 8601), ``changes`` (lines), previous
    ``seeds``."""
    rounds: dict[str, Any] | None = None
    """The schedule of the rounds: ``mode``, ``contenders``, ``seeds`` and ``looks`` (numbers of
    replicates); None for studies of an older protocol."""
    looks: tuple[dict[str, Any], ...] = ()
    """The looks after the study's rounds, oldest first (``analysis.rounds.Look``)."""
    looks_again: tuple[dict[str, Any], ...] = ()
    """The looks that ``--again`` allowed, oldest first."""
    retried: tuple[dict[str, Any], ...] = ()
    """Failures that were run again: ``at``, ``phase``, ``method``, ``trial_id``, ``seed``,
    ``setting``, and the previous ``status`` and ``reason``."""

    # Provenance
    warnings: tuple[str, ...]
    provenance: dict[str, Any]
