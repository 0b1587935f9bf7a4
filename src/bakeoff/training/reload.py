"""Load what a trial saved in plain PEFT, and take its validation loss: is it what was trained?

Beside ``segment`` in the training half; carried by an executor when a study's final trials have
ended. Nothing of the engine is used: an untouched base, the files, transformers' padded batches.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from bakeoff.core import disk_full
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
    """Reload the segment's one trial: what an executor calls, JSON in and out.

    Returns ``{"loss": mean validation loss in nats, "path": its folder below the study's,
    "error": None}``, or an error's text and no loss.
    """
    segment = Segment.from_json(value)
    path = None
    try:
        with warnings.catch_warnings(action="ignore"):  # of PEFT's: the loss tells
            kind, path = saved_location(segment)
            at = ReferenceModel.of(segment)
            model = at.to_device(at.load(Path(segment.folder) / path, kind))
            return {"loss": at.loss(model), "path": path, "error": None}
    except Exception as error:  # as in a segment: a failure is a result
        if disk_full.disk_full_message(error) or is_device_lost(error):
            raise
        return {"loss": None, "path": path, "error": redact(f"{type(error).__name__}: {error}")}


def saved_location(segment: Segment) -> tuple[str, str]:
    """Return as what the segment's one trial was saved, and where in the study's folder."""
    (trial,) = segment.trials
    kind = build_hook(trial.method, trial.config).saved_as
    return kind, (Path(TRIALS) / trial.id / kind).as_posix()


class ReferenceModel(NamedTuple):
    """What models of one trial are loaded and read with, by transformers and PEFT alone."""

    segment: Segment
    c: Conditions
    task: Task
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, segment: Segment) -> ReferenceModel:
        """Set this process up for the segment's one trial."""
        c = segment.trials[0].conditions
        prepare_process(c)
        tokenizer = load_tokenizer(segment.base_path, c.revision, c.trusted)
        return cls(segment, c, make_task(c), tokenizer)

    def base(self) -> nn.Module:
        """Return the untouched base, with the output layer that the trial began with."""
        segment = self.segment
        return load_base(self.c, self.task, segment.base_path, segment.trials[0].seed)

    def loaded(self, folder: Path, saved_as: str) -> Any:
        """Return the model that a folder holds, on the untouched base."""
        return load_saved.load_onto(self.base(), folder, saved_as, self.c.trusted)

    def placed(self, model: nn.Module) -> nn.Module:
        """Put a model where it is read."""
        return move_to_device(model, self.c.device).eval()

    def loss(self, model: nn.Module) -> float:
        """Return the mean validation loss in nats, over padded batches."""
        rows = read_rows(Path(self.segment.folder) / "data" / "validation.jsonl")
        losses = partial(reference_losses, self.task, model, self.tokenizer, rows, self.c)
        sums, counts = retry_with_half(losses, self.c.evaluation_batch_size)
        return sum(sums) / sum(counts)
