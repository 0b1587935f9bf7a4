"""Score answers that need no learning: one answer for every item, or a choice at random.

A method that is not better than these has learnt nothing about the items (``analysis.learning``).
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeoff.core.redact import redact
from bakeoff.core.trial import Segment
from bakeoff.data.rows import read_rows
from bakeoff.engine.heartbeat import beat
from bakeoff.metrics import load
from bakeoff.metrics.run import Metric
from bakeoff.tasks._base import Task
from bakeoff.training.setup import make_task

CONSTANT, CHANCE, FREQUENCIES = "constant", "chance", "frequencies"
MAX_ANSWERS = 3
"""How many of the most common training answers are tried."""
MAX_SECONDS = 30.0
"""No further answer is tried after this time: a metric of the user's own may be slow."""

log = logging.getLogger(__name__)


def score_constant(value: dict[str, Any]) -> dict[str, Any]:
    """Score the best constant answer on test; a worker's entry point.

    ``value`` is a segment, of which the conditions and the folder count. Returns ``kind``,
    ``answer`` and ``scores`` (one a test item), or ``kind`` None where no such answer exists.
    """
    segment = Segment.from_json(value)
    c, folder = segment.trials[0].conditions, Path(segment.folder)
    try:
        task, metric = make_task(c), load.load_metric(c, folder)
        train_rows, rows = (
            read_rows(folder / "data" / f"{split}.jsonl") for split in ("train", "test")
        )
        train, test = task.references(train_rows), task.references(rows)
        if metric.of_losses:
            return _frequency_losses(task, metric, train, test)
        chance = task.chance(rows) if metric.info.name == task.default_metric else None
        if chance is not None:
            return {"kind": CHANCE, "answer": None, "scores": chance}
        return _best_constant(metric, train, test)
    except Exception as error:  # the study does not depend on it
        log.warning("constant answers were not scored: %s", redact(f"{error}"))
        return _nothing()


def _nothing() -> dict[str, Any]:
    return {"kind": None, "answer": None, "scores": []}


def _best_constant(metric: Metric, train: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
    """Return the scores of the most common training answer that scores best on test."""
    started, found = time.monotonic(), _nothing()
    sign = 1 if metric.info.better == "higher" else -1
    for answer, count in Counter(train).most_common(MAX_ANSWERS):
        if count < 2 or time.monotonic() - started > MAX_SECONDS:
            break
        beat()
        scores = metric.score([answer] * len(test), test, "test")
        if found["kind"] is None or sign * sum(scores) > sign * sum(found["scores"]):
            found = {"kind": CONSTANT, "answer": answer, "scores": scores}
    return found


def _frequency_losses(
    task: Task, metric: Metric, train: Sequence[str], test: Sequence[str]
) -> dict[str, Any]:
    """Return the losses of a classifier that gives each label its share of the training rows."""
    if not task.heads:
        return _nothing()
    counts, labels = Counter(train), {*train, *test}
    total = len(train) + len(labels)  # one more of each label: none has the probability 0
    losses = [-math.log((counts[label] + 1) / total) for label in test]
    scores = metric.score_losses(losses, [1.0] * len(losses), "test")
    return {"kind": FREQUENCIES, "answer": None, "scores": scores}
