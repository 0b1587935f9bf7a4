"""Find methods that train a matrix which the base uses as input embedding and as output head.

The method is attached to the base's architecture without weights, as for the parameter count.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from bakeoff.core.trial import Trial
from bakeoff.core.worker_log import quiet_libraries
from bakeoff.data.issues import DataIssue
from bakeoff.methods.hook import Incompatible, trainable_parameters
from bakeoff.training.preflight.parameter_count import Architecture, attach_without_weights

SMALL_VOCABULARY = 64
"""Rows of the shared matrix for methods that can only be attached to real weights."""


def check(trials: Sequence[Trial], base: Any, shape: Architecture) -> list[DataIssue]:
    """Return an issue for each method that trains one of the tied matrices of ``base``."""
    if not _tied_names(base):
        return []
    with quiet_libraries():  # the trials record what libraries warn of
        halves = [(trial.method.title, _trained_half(trial, shape)) for trial in trials]
    return [_issue(title, *half) for title, half in halves if half is not None]


def _tied_names(model: Any) -> tuple[str, str] | None:
    """Return the names of head and embedding, or None if they do not share weights."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is not getattr(embedding, "weight", 0):
        return None
    names = {module: name for name, module in model.named_modules()}
    return names[head], names[embedding]


def _trained_half(trial: Trial, shape: Architecture) -> tuple[str, str, bool] | None:
    """Return the matrix that a method trains, the one tied to it, and if both are trained as one.

    None if it trains neither, or cannot be attached; then its cost probe reports the reason.
    """
    try:
        return _find_trained_half(trial, shape, None)
    except (Incompatible, NotImplementedError, RuntimeError):
        small = copy.deepcopy(shape.config)
        small.get_text_config().vocab_size = SMALL_VOCABULARY
        try:
            return _find_trained_half(trial, shape._replace(config=small), 1)
        except (Incompatible, NotImplementedError, RuntimeError):
            return None


def _find_trained_half(
    trial: Trial, shape: Architecture, layers: int | None
) -> tuple[str, str, bool] | None:
    base = shape.model(layers)
    names = _tied_names(base)
    if names is None:
        return None
    head, embedding = names
    shared: nn.Parameter = base.get_output_embeddings().weight  # type: ignore[operator]
    steps = trial.conditions.steps
    trained = trainable_parameters(
        attach_without_weights(trial.method, trial.config, base, shape, steps)
    )
    if any(parameter is shared for parameter in trained.values()):
        return head, embedding, True
    for one, other in ((head, embedding), (embedding, head)):
        if any(f".{one}." in f".{name}." for name in trained):
            return one, other, False
    return None


def _issue(title: str, one: str, other: str, together: bool) -> DataIssue:
    if together:
        return DataIssue(
            "tied-head",
            f"{title} trains the matrix that `{one}` and `{other}` share: training one changes the "
            "other",
            "this is usual for full fine-tuning; the other methods do not train it.",
        )
    return DataIssue(
        "tied-head",
        f"{title} trains `{one}`, whose weights `{other}` shares: unmerged, only `{one}` changes; "
        "merged, both change or are no longer tied",
        "leave it out of the method's targets, or serve the adapter unmerged.",
    )
