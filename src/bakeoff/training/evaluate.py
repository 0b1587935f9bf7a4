"""Score the lanes of a setup: mean loss on validation, answers and per-item scores of a split.

Used by ``segment``. Where lanes ride, every item is put to all lanes at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bakeoff.core import disk_full
from bakeoff.core.redact import redact
from bakeoff.core.results import SplitScores
from bakeoff.core.trial import Conditions, Segment
from bakeoff.data.rows import Row, read_rows
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.device import autocast, retry_with_half
from bakeoff.engine.generation.generate import generate_plain
from bakeoff.engine.heartbeat import beat
from bakeoff.engine.packing.attention import use_layout
from bakeoff.metrics import load, run
from bakeoff.metrics.run import MetricError
from bakeoff.tasks._base import Example, Task, load_tokenizer
from bakeoff.training.generation import generate_fast, generation_mismatch
from bakeoff.training.setup import (
    TrainingSetup,
    load_base,
    make_task,
    prepare_process,
    requested_switches,
)

LaneTable = np.ndarray[tuple[int, int], Any]
"""A number for each lane and example, ``[lanes, examples]``."""


def item_losses(setup: TrainingSetup, examples: Sequence[Example]) -> LaneTable:
    """Return each lane's loss on each example, ``[lanes, examples]``, in nats.

    An example's summed loss over the mean count of supervised units: a row's mean is the mean loss
    over all units, whatever their number in each example.
    """
    sums, counts = summed_losses(setup, examples)
    found: LaneTable = sums / counts.mean(1, keepdims=True)
    return found


@torch.no_grad()
def summed_losses(setup: TrainingSetup, examples: Sequence[Example]) -> tuple[LaneTable, LaneTable]:
    """Return each lane's summed loss on each example, in nats, and the supervised units in it.

    Where memory runs out, fewer examples are put to the lanes at once.
    """
    setup.model.eval()
    return retry_with_half(
        partial(_sum_losses, setup, examples), setup.conditions.evaluation_batch_size
    )


def _sum_losses(
    setup: TrainingSetup, examples: Sequence[Example], rows: int
) -> tuple[LaneTable, LaneTable]:
    c, lanes = setup.conditions, setup.lanes
    sums, counts = [], []
    for step in setup.batch_builder.evaluation_steps(examples, rows):
        parts = []
        beat()
        for batch, where, first, width, _ in step.to(c.device).passes:
            lanes.run_lanes(first, width, batch.rows // width)
            with autocast(c.device, c.precision), use_layout(where, lanes.random):
                losses = setup.task.item_losses(setup.model, batch)
            parts.append(torch.stack([x.view(width, -1) for x in losses]))
        both = torch.cat(parts, 1).double()
        sums.append(both[0])
        counts.append(both[1])
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    back = np.argsort(order)
    return torch.cat(sums, 1).cpu().numpy()[:, back], torch.cat(counts, 1).cpu().numpy()[:, back]


def score_split(
    setup: TrainingSetup, split: str, losses: Sequence[float | None]
) -> list[SplitScores | MetricError]:
    """Score every item of a split in every lane with the study's metric.

    A lane whose answers the metric fails on gives that error; the others do not suffer it.
    """
    metric = load.load_metric(setup.conditions, setup.data.parent)
    if metric.of_losses:
        summed = zip(*summed_losses(setup, setup.examples(split)), losses, strict=True)
        return [
            _score_or_error(partial(metric.score_losses, sums, counts, split), None, loss)
            for sums, counts, loss in summed
        ]
    rows = setup.rows(split)
    references = setup.task.references(rows)
    return [
        _score_or_error(partial(metric.score, own, references, split), own, loss)
        for own, loss in zip(predict_all(setup, rows), losses, strict=True)
    ]


def _score_or_error(
    score: Callable[[], list[float]], predictions: Sequence[str] | None, loss: float | None
) -> SplitScores | MetricError:
    try:
        scores = tuple(score())
    except MetricError as error:
        return error
    return SplitScores(scores, tuple(predictions or [None] * len(scores)), loss)


@torch.no_grad()
def predict_all(setup: TrainingSetup, rows: Sequence[Row]) -> list[list[str]]:
    """Return every lane's answer to every row.

    Fast generation takes the lanes in turns; else each batch of rows is put to all lanes at once.
    Where memory runs out, fewer rows are.
    """
    setup.model.eval()
    if setup.batch_builder.switches.generation and setup.task.generates:
        return _generate_lanes(setup, rows)
    return retry_with_half(
        partial(_predict_lanes, setup, rows), setup.conditions.evaluation_batch_size
    )


def _predict_lanes(setup: TrainingSetup, rows: Sequence[Row], most: int) -> list[list[str]]:
    c, lanes, width = setup.conditions, setup.lanes, setup.batch_builder.width
    found: list[dict[int, str]] = [{} for _ in range(len(lanes))]
    for picked in length_sorted_batches(setup.task, rows, most // width):
        own_rows = [rows[i] for i in picked]
        for first in range(0, len(lanes), width):
            beat()
            riders = min(width, len(lanes) - first)
            asked = own_rows * riders
            lanes.run_lanes(first, riders, setup.task.batch_rows(own_rows))
            with autocast(c.device, c.precision):
                got = setup.task.predict(setup.model, setup.tokenizer, asked, c.device)
            for lane in range(riders):
                own = got[lane * len(picked) : (lane + 1) * len(picked)]
                found[first + lane].update(zip(picked, own, strict=True))
    return [[own[i] for i in range(len(rows))] for own in found]


def length_sorted_batches(task: Task, rows: Sequence[Row], most: int) -> Iterator[list[int]]:
    """Yield the rows' positions, those of about equal length together, ``most`` batch rows each."""
    order = sorted(range(len(rows)), key=lambda i: sum(len(str(v)) for v in rows[i].values()))
    share = max(1, most // max(task.batch_rows([row]) for row in rows))
    for start in range(0, len(rows), share):
        yield order[start : start + share]


def _generate_lanes(setup: TrainingSetup, rows: Sequence[Row]) -> list[list[str]]:
    asked, found = setup.task.prompts(setup.tokenizer, rows), []
    for lane in range(len(setup.lanes)):
        setup.lanes.run_single(lane)
        tokens = generate_fast(
            setup.model, asked, setup.conditions, setup.batch_builder.switches.graphs
        )
        found.append(setup.task.decode(setup.tokenizer, tokens))
    return found


@torch.no_grad()
def check_longest_answer(setup: TrainingSetup, positions: int | None) -> int | None:
    """Read validation's longest prompt with the longest answer behind it; return its tokens.

    No answer's cache takes more. ``positions`` is the most that the base can read, None without a
    limit; where the task generates nothing, nothing is read.
    """
    if not setup.task.generates:
        return None
    setup.model.eval()
    asked = setup.task.prompts(setup.tokenizer, setup.rows("validation"))
    prompt = max(asked.prompts, key=len)
    whole = [*prompt, *[prompt[-1]] * (asked.most - 1)]
    if positions is not None:
        whole = whole[: max(1, positions - setup.virtual_tokens - 1)]
    setup.lanes.run_single(0)
    with autocast(setup.conditions.device, setup.conditions.precision):
        generate_plain(setup.model, asked._replace(prompts=[whole], most=1))
    return len(whole)


@torch.no_grad()
def score_base(value: dict[str, Any]) -> dict[str, Any]:
    """Score the untouched base on test: what an executor calls, JSON in and out.

    ``value`` is a segment whose conditions and wishes count; its trials are not trained. Returns
    ``{"scores": SplitScores as JSON, "error": None}``, or an error's text and no scores; ``note``
    says why its answers were generated plainly though fast was wished.
    """
    segment = Segment.from_json(value)
    c = segment.trials[0].conditions
    try:
        prepare_process(c)
        task = make_task(c)
        tokenizer = load_tokenizer(segment.base_path, c.revision, c.trusted)
        model = load_base(c, task, segment.base_path, 0).eval()
        rows = read_rows(Path(segment.folder) / "data" / "test.jsonl")
        metric = load.load_metric(c, Path(segment.folder))
        switches, _ = requested_switches(segment)
        scores, note = score_reference_model(metric, task, model, tokenizer, rows, c, switches)
    except Exception as error:  # as in a segment: a failure is a result
        if disk_full.disk_full_message(error):
            raise
        return {"scores": None, "error": redact(f"{type(error).__name__}: {error}")}
    return {"scores": dataclasses.asdict(scores), "error": None, "note": note}


def score_reference_model(
    metric: run.Metric, task: Task, model: Any, tokenizer: Any, rows: Sequence[Row],
    c: Conditions, switches: Switches,
) -> tuple[SplitScores, str | None]:  # fmt: skip
    """Score a plain model on test rows; say why its answers were not generated fast, if wished."""
    note = None
    if task.generates and not metric.of_losses and switches.generation:
        asked, graphs = task.prompts(tokenizer, rows), switches.graphs
        note = generation_mismatch(model, asked, c, graphs)
        if note is None:
            said = task.decode(tokenizer, generate_fast(model, asked, c, graphs))
            found = metric.score(said, task.references(rows), "test")
            return SplitScores(tuple(found), tuple(said), None), None
    score = partial(_score_reference_batches, metric, task, model, tokenizer, rows, c)
    return retry_with_half(score, c.evaluation_batch_size), note


def _score_reference_batches(
    metric: run.Metric, task: Task, model: Any, tokenizer: Any, rows: Sequence[Row],
    c: Conditions, most: int,
) -> SplitScores:  # fmt: skip
    """Score a plain model, batch by batch of about equal lengths, ``most`` batch rows each."""
    if metric.of_losses:
        sums, counts = reference_losses(task, model, tokenizer, rows, c, most)
        scores = metric.score_losses(sums, counts, "test")
        return SplitScores(tuple(scores), (None,) * len(rows), None)
    said: dict[int, str] = {}
    for picked in length_sorted_batches(task, rows, most):
        with autocast(c.device, c.precision):
            got = task.predict(model, tokenizer, [rows[i] for i in picked], c.device)
        said.update(zip(picked, got, strict=True))
    predictions = [said[i] for i in range(len(rows))]
    scores = metric.score(predictions, task.references(rows), "test")
    return SplitScores(tuple(scores), tuple(predictions), None)


@torch.no_grad()
def reference_losses(
    task: Task, model: Any, tokenizer: Any, rows: Sequence[Row], c: Conditions, most: int
) -> tuple[list[float], list[float]]:
    """Return each row's summed loss in nats and its supervised units, by a plain model's forward.

    Batches are padded, of about equal lengths and at most ``most`` rows.
    """
    pad = int(tokenizer.pad_token_id or 0)
    sums, counts = [0.0] * len(rows), [0.0] * len(rows)
    for picked in length_sorted_batches(task, rows, most):
        beat()
        batch = task.batch(task.encode(tokenizer, [rows[i] for i in picked]), pad, c.device)
        with autocast(c.device, c.precision):
            found = task.item_losses(model, batch)
        for i, total, units in zip(picked, *(x.double().tolist() for x in found), strict=True):
            sums[i], counts[i] = total, units
    return sums, counts
