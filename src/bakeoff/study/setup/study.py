"""The opened study: everything resolved, nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.record import MetricInfo
from bakeoff.core.trial import LEARNING_RATE, Conditions, MethodEntry, Segment, Trial
from bakeoff.data import splits as data_splits
from bakeoff.study.config import StudySpec
from bakeoff.study.setup import base_model

CAUSAL_LM = "CAUSAL_LM"
"""PEFT's name for the models whose every position says the next token."""


class ChosenMetric(NamedTuple):
    """A study's metric: its name and what it is, its options, and the code of the user's own."""

    name: str
    info: MetricInfo
    options: dict[str, Any]
    of_losses: bool
    code: bytes | None


class Study(NamedTuple):
    """An opened study: everything resolved, nothing trained."""

    spec: StudySpec
    folder: Path
    entries: tuple[MethodEntry, ...]
    conditions: Conditions
    base: base_model.ResolvedBase
    machine: dict[str, Any]
    splits: data_splits.Splits
    warnings: tuple[str, ...]
    source: Path
    metric: ChosenMetric
    sizes: tuple[dict[str, Any], ...] | None = None
    """Each method's size, where the study wants equal trainable parameters."""


def whole_segment(
    study: Study, trials: Sequence[Trial], engine: dict[str, Any] | None = None
) -> Segment:
    """Return the segment of ``trials`` over the whole budget."""
    steps = study.conditions.steps
    return Segment(tuple(trials), 0, steps, str(study.folder), study.base.path, engine)


def prior_trial(study: Study, entry: MethodEntry) -> Trial:
    """Return a method's trial at its prior learning rate: what is checked and probed."""
    setting = {LEARNING_RATE: entry.learning_rate}
    return Trial(entry, setting, study.spec.seed, "search", study.conditions)
