"""Load what a trial saved in plain PEFT, and take its validation loss: is it what was trained?

Beside ``segment`` in the training half; carried by an executor when a study's final trials have
ended. Nothing of the engine is used: an untouched base, the files, transformers' padded batches.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from bakeoff import room
from bakeoff.assemble import load_base, make_task, prepare_process
from bakeoff.data import read_rows
from bakeoff.engine.device import device_lost, halving, place
from bakeoff.evaluate import plain_losses
from bakeoff.methods import saved
from bakeoff.methods.hook import make
from bakeoff.outward import redact
from bakeoff.tasks import load_tokenizer
from bakeoff.trial import Segment


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Reload the segment's one trial: what an executor calls, JSON in and out.

    Returns ``{"loss": mean validation loss in nats, "path": its folder below the study's,
    "error": None}``, or an error's text and no loss.
    """
    segment = Segment.from_json(value)
    (trial,) = segment.trials
    path = None
    try:
        saved_as = make(trial.method, trial.config).saved_as
        path = Path("trials") / trial.id / saved_as
        return {"loss": _loss(segment, path, saved_as), "path": path.as_posix(), "error": None}
    except Exception as error:  # as in a segment: a failure is a result
        if room.full(error) or device_lost(error):
            raise
        said = redact(f"{type(error).__name__}: {error}")
        return {"loss": None, "path": path and path.as_posix(), "error": said}


def _loss(segment: Segment, path: Path, saved_as: str) -> float:
    c, seed, folder = segment.trials[0].conditions, segment.trials[0].seed, Path(segment.folder)
    prepare_process(c)
    task = make_task(c)
    tokenizer = load_tokenizer(segment.base_path, c.revision, c.trusted)
    base = load_base(c, task, segment.base_path, seed)
    model = place(saved.onto(base, folder / path, saved_as), c.device).eval()
    rows = read_rows(folder / "data" / "validation.jsonl")
    losses = partial(plain_losses, task, model, tokenizer, rows, c)
    sums, counts = halving(losses, c.evaluation_batch_size)
    return sum(sums) / sum(counts)
