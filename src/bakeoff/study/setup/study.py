"""The opened study, and the trials and segments that are built from it directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bakeoff.core.record import MetricInfo
from bakeoff.core.trial import LEARNING_RATE, Conditions, MethodEntry, Segment, Trial
from bakeoff.data import splits as data_splits
from bakeoff.study.config import StudySpec
from bakeoff.study.executors import Executor, never
from bakeoff.study.remote import (
    ExecutorFactory,
    exclusive_executor,
    make_executor,
    open_executor,
)
from bakeoff.study.setup import base_model
from bakeoff.study.setup.item_groups import ItemGroups

CAUSAL_LM = "CAUSAL_LM"
"""PEFT's name for the task type of models that predict the next token."""


class ChosenMetric(NamedTuple):
    """A study's metric: name, description, options, and the source of a user's own function."""

    name: str
    info: MetricInfo
    options: dict[str, Any]
    of_losses: bool
    code: bytes | None


class Study(NamedTuple):
    """A study whose data, base model, methods and metric are resolved; nothing is trained yet."""

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
    """Each method's size, if the study asks for equal trainable parameters."""
    make_executor: ExecutorFactory = make_executor
    chosen: Mapping[str, str] = MappingProxyType({})
    """A note on each value that the study file leaves open, by its key."""
    unused_columns: tuple[str, ...] = ()
    """Columns of train that the study does not read."""
    groups: ItemGroups | None = None
    """The groups of the test items; None: every item is its own."""

    def executor(self, should_stop: Callable[[], bool] = never) -> Executor:
        """Return the executor for the study's trials."""
        return open_executor(self.spec, should_stop, self.make_executor)

    def exclusive_executor(self, should_stop: Callable[[], bool] = never) -> Executor | None:
        """Return an executor for measurements on other machines; None if the study uses none."""
        return exclusive_executor(self.spec, should_stop, self.make_executor)


def whole_segment(
    study: Study, trials: Sequence[Trial], engine: dict[str, Any] | None = None
) -> Segment:
    """Return one segment that runs ``trials`` over all of the study's steps."""
    steps = study.conditions.steps
    return Segment(tuple(trials), 0, steps, str(study.folder), study.base.path, engine)


def prior_trial(study: Study, entry: MethodEntry) -> Trial:
    """Return a method's trial at the catalog's learning rate, for checks and cost probes."""
    setting = {LEARNING_RATE: entry.learning_rate}
    return Trial(entry, setting, study.spec.seed, "search", study.conditions)
