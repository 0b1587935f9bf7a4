"""Reload saved weights in plain PEFT and compute their validation loss.

The result is compared with the loss during training. None of the engine's accelerators is used:
the base model, the saved files, and transformers' padded batches.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from bakeoff.core import files
from bakeoff.core.errors import describe_error
from bakeoff.core.redact import redact
from bakeoff.core.trial import Conditions, Segment
from bakeoff.core.trial_dir import TRIALS
from bakeoff.data.rows import read_rows
from bakeoff.engine.device import is_device_lost, move_to_device, retry_with_half
from bakeoff.methods import load_saved
from bakeoff.methods.hook import build_hook
from bakeoff.tasks._base import Task, load_tokenizer
from bakeoff.training.evaluate import reference_losses
from bakeoff.training.setup import load_base, make_task, prepare_process


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Reload the segment's one trial; a worker's entry point.

    Returns ``{"loss": mean validation loss in nats, "path": folder relative to the study folder,
    "error": None}``, or no loss and an error's text.
    """
    segment = Segment.from_json(value)
    path = None
    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT's; the loss shows what matters
            kind, path = saved_location(segment)
            reference = ReferenceModel.of(segment)
            model = reference.to_device(reference.load(Path(segment.folder) / path, kind))
            return {"loss": reference.loss(model), "path": path, "error": None}
    except Exception as error:  # as in a segment: a failure is a result
        if files.disk_full_message(error) or is_device_lost(error):
            raise
        return {"loss": None, "path": path, "error": redact(describe_error(error))}


def saved_location(segment: Segment) -> tuple[str, str]:
    """Return the form in which the segment's one trial was saved, and its path in the study."""
    (trial,) = segment.trials
    kind = build_hook(trial.method, trial.config).saved_as
    return kind, (Path(TRIALS) / trial.id / kind).as_posix()


class ReferenceModel(NamedTuple):
    """Loads and evaluates the saved model of one trial with transformers and PEFT alone."""

    segment: Segment
    c: Conditions
    task: Task
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, segment: Segment) -> ReferenceModel:
        """Prepare this process for the segment's one trial."""
        c = segment.trials[0].conditions
        prepare_process(c)
        tokenizer = load_tokenizer(segment.base_path, c.revision, c.trusted)
        return cls(segment, c, make_task(c), tokenizer)

    def base(self) -> nn.Module:
        """Return the base model with the trial's initial output layer."""
        segment = self.segment
        return load_base(self.c, self.task, segment.base_path, segment.trials[0].seed)

    def load(self, folder: Path, saved_as: str) -> Any:
        """Return the base model with the weights of a folder."""
        return load_saved.load_onto(self.base(), folder, saved_as, self.c.trusted)

    def to_device(self, model: nn.Module) -> nn.Module:
        """Return the model on the study's device, in evaluation mode."""
        return move_to_device(model, self.c.device).eval()

    def loss(self, model: nn.Module) -> float:
        """Return the mean validation loss in nats, over padded batches."""
        rows = read_rows(Path(self.segment.folder) / "data" / "validation.jsonl")
        losses = partial(reference_losses, self.task, model, self.tokenizer, rows, self.c)
        sums, counts = retry_with_half(losses, self.c.evaluation_batch_size, "losses")
        return sum(sums) / sum(counts)
