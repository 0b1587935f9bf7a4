"""Score the lanes of a bench: mean loss on validation, answers and per-item scores of a split.

Used by ``segment``. Where lanes ride, every item is put to all lanes at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bakeoff import registry
from bakeoff.assemble import Bench, load_base, make_task, prepare_process
from bakeoff.data import read_rows
from bakeoff.engine.attention import packed
from bakeoff.engine.device import autocast
from bakeoff.results import SplitScores
from bakeoff.tasks import Example, load_tokenizer
from bakeoff.trial import Segment


@torch.no_grad()
def item_losses(bench: Bench, examples: Sequence[Example]) -> np.ndarray[tuple[int, int], Any]:
    """Return each lane's loss on each example, ``[lanes, examples]``, in nats.

    An example's summed loss over the mean count of supervised units: a row's mean is the mean loss
    over all units, whatever their number in each example.
    """
    c, lanes = bench.conditions, bench.lanes
    bench.model.eval()
    sums, counts = [], []
    for step in bench.feed.evaluation(examples, c.evaluation_batch_size):
        parts, first = [], 0
        for batch, where, width in zip(*step.to(c.device), strict=True):
            lanes.ride(first, width, batch.rows // width)
            first += width
            with autocast(c.device, c.precision), packed(where, lanes.draws):
                losses = bench.task.item_losses(bench.model, batch)
            parts.append(torch.stack([x.view(width, -1) for x in losses]))
        both = torch.cat(parts, 1).double()
        sums.append(both[0])
        counts.append(both[1])
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    by_length = (torch.cat(sums, 1) / torch.cat(counts, 1).mean(1, keepdim=True)).cpu().numpy()
    found = np.empty_like(by_length)
    found[:, order] = by_length
    return found


@torch.no_grad()
def score_split(bench: Bench, split: str, losses: Sequence[float | None]) -> list[SplitScores]:
    """Answer every item of a split in every lane and score it with the study's metric."""
    c, lanes = bench.conditions, bench.lanes
    bench.model.eval()
    rows = bench.rows(split)
    by_length = sorted(range(len(rows)), key=lambda i: sum(len(str(v)) for v in rows[i].values()))
    width = bench.feed.width
    share = max(1, c.evaluation_batch_size // width)
    answers: list[dict[int, str]] = [{} for _ in range(len(lanes))]
    for start in range(0, len(rows), share):
        picked = by_length[start : start + share]
        for first in range(0, len(lanes), width):
            riders = min(width, len(lanes) - first)
            asked = [rows[i] for i in picked] * riders
            lanes.ride(first, riders, len(picked))
            with autocast(c.device, c.precision):
                got = bench.task.predict(bench.model, bench.tokenizer, asked, c.device)
            for lane in range(riders):
                own = got[lane * len(picked) : (lane + 1) * len(picked)]
                answers[first + lane].update(zip(picked, own, strict=True))
    metric = registry.find("metrics", c.metric)
    references = bench.task.references(rows)
    scored = []
    for own_answers, loss in zip(answers, losses, strict=True):
        predictions = tuple(own_answers[i] for i in range(len(rows)))
        scored.append(SplitScores(tuple(metric.score(predictions, references)), predictions, loss))
    return scored


@torch.no_grad()
def score_base(value: dict[str, Any]) -> dict[str, Any]:
    """Score the untouched base on test: what an executor calls, JSON in and out.

    ``value`` is a segment whose conditions count; its trials are not trained. Returns
    ``{"scores": SplitScores as JSON, "error": None}``, or an error's text and no scores.
    """
    segment = Segment.from_json(value)
    c = segment.trials[0].conditions
    try:
        prepare_process(c)
        task = make_task(c)
        tokenizer = load_tokenizer(segment.base_path, c.revision)
        model = load_base(c, task, segment.base_path, 0).eval()
        rows = read_rows(Path(segment.folder) / "data" / "test.jsonl")
        by_length = sorted(
            range(len(rows)), key=lambda i: sum(len(str(v)) for v in rows[i].values())
        )
        answers: dict[int, str] = {}
        for start in range(0, len(rows), c.evaluation_batch_size):
            picked = by_length[start : start + c.evaluation_batch_size]
            with autocast(c.device, c.precision):
                got = task.predict(model, tokenizer, [rows[i] for i in picked], c.device)
            answers.update(zip(picked, got, strict=True))
        predictions = tuple(answers[i] for i in range(len(rows)))
        metric = registry.find("metrics", c.metric)
        scores = tuple(metric.score(predictions, task.references(rows)))
    except Exception as error:  # as in a segment: a failure is a result
        return {"scores": None, "error": f"{type(error).__name__}: {error}"}
    return {"scores": dataclasses.asdict(SplitScores(scores, predictions, None)), "error": None}
