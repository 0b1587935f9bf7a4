"""Compute losses, predictions and metric scores of the trained lanes, and of a plain model.

If lanes are batched, all of them process every item in one forward pass.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bakeoff.core import files
from bakeoff.core.errors import describe_error
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
from bakeoff.tasks._base import Answer, Example, Task, load_tokenizer
from bakeoff.training.generation import (
    generate_fast,
    generate_fast_in_lanes,
    generation_mismatch,
)
from bakeoff.training.setup import (
    TrainingSetup,
    load_base,
    make_task,
    prepare_process,
    requested_switches,
)

LaneTable = np.ndarray[tuple[int, int], Any]
"""A number for each lane and example, ``[lanes, examples]``."""

log = logging.getLogger(__name__)


def item_losses(setup: TrainingSetup, examples: Sequence[Example]) -> LaneTable:
    """Return each lane's loss on each example, ``[lanes, examples]``, in nats.

    An example's summed loss is divided by the mean number of supervised units per example, so that
    a lane's mean over the examples is its mean loss over all units.
    """
    sums, counts = summed_losses(setup, examples)
    losses: LaneTable = sums / counts.mean(1, keepdims=True)
    return losses


@torch.no_grad()
def summed_losses(setup: TrainingSetup, examples: Sequence[Example]) -> tuple[LaneTable, LaneTable]:
    """Return each lane's summed loss on each example, in nats, and its number of supervised units.

    When memory runs out, the batches are halved.
    """
    setup.model.eval()
    return retry_with_half(partial(_sum_losses, setup, examples), _batch_rows(setup), "losses")


def _batch_rows(setup: TrainingSetup) -> int:
    """Return the rows of a batch over all lanes: ``evaluation_batch_size``, on a GPU of each lane.

    A pass over few rows takes a GPU as long as one over many, and tokens of a pass are limited by
    the memory that the cost probe has measured.
    """
    rows = setup.conditions.evaluation_batch_size
    measured = setup.batch_builder.pass_tokens is not None
    on_gpu = setup.conditions.device.startswith("cuda")
    return rows * setup.batch_builder.width if on_gpu and measured else rows


def _sum_losses(
    setup: TrainingSetup, examples: Sequence[Example], rows: int
) -> tuple[LaneTable, LaneTable]:
    c, lanes = setup.conditions, setup.lanes
    sums, counts = [], []
    for step in setup.batch_builder.evaluation_steps(examples, rows):
        parts = []
        beat()
        for batch, layout, first, width, _ in step.to(c.device).passes:
            lanes.run_lanes(first, width, batch.rows // width)
            with autocast(c.device, c.precision), use_layout(layout, lanes.random):
                losses = setup.task.item_losses(setup.model, batch)
            parts.append(torch.stack([x.view(width, -1) for x in losses]))
        both = torch.cat(parts, 1).double()
        sums.append(both[0])
        counts.append(both[1])
    # the batches were sorted by length: bring the columns back into the order of the examples
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    back = np.argsort(order)
    return torch.cat(sums, 1).cpu().numpy()[:, back], torch.cat(counts, 1).cpu().numpy()[:, back]


def score_split(
    setup: TrainingSetup, split: str, losses: Sequence[float | None]
) -> list[SplitScores | MetricError]:
    """Score every item of a split in every lane with the study's metric.

    If the metric fails on a lane's predictions, that lane's entry is the error.
    """
    metric = load.load_metric(setup.conditions, setup.data.parent)
    if metric.of_losses:
        summed = zip(*summed_losses(setup, setup.examples(split)), losses, strict=True)
        return [
            _score_or_error(partial(metric.score_losses, sums, counts, split), None, loss)
            for sums, counts, loss in summed
        ]
    rows = setup.rows(split)
    references = setup.task.scored_references(setup.tokenizer, rows)
    return [
        _score_or_error(
            partial(metric.score, [a.text for a in answers], references, split),
            (setup.task, answers),
            loss,
        )
        for answers, loss in zip(predict_all(setup, rows), losses, strict=True)
    ]


def _score_or_error(
    score: Callable[[], list[float]],
    answered: tuple[Task, Sequence[Answer]] | None,
    loss: float | None,
) -> SplitScores | MetricError:
    try:
        scores = score()
    except MetricError as error:
        return error
    if answered is None:
        return SplitScores(tuple(scores), (None,) * len(scores), loss)
    return answer_scores(scores, *answered, loss)


def answer_scores(
    scores: Sequence[float], task: Task, answers: Sequence[Answer], loss: float | None = None
) -> SplitScores:
    """Return the scores of answers, with the number of those that were cut if any is generated."""
    cut = sum(a.cut for a in answers) if task.generates else None
    return SplitScores(tuple(scores), tuple(a.text for a in answers), loss, cut)


def predict_batch(
    task: Task, model: Any, tokenizer: Any, rows: Sequence[Row], device: str
) -> list[Answer]:
    """Return a model's answer to each row of one evaluation batch."""
    if not task.generates:
        return [Answer(text) for text in task.predict(model, tokenizer, rows, device)]
    request = task.prompts(tokenizer, rows)
    return task.answers(tokenizer, request, generate_plain(model, request))


@torch.no_grad()
def predict_all(setup: TrainingSetup, rows: Sequence[Row]) -> list[list[Answer]]:
    """Return every lane's answer to every row, ``[lanes][rows]``.

    All lanes process each batch of rows together, except in fast generation where a probe found
    that they cannot. When memory runs out, the batches are halved.
    """
    setup.model.eval()
    if setup.batch_builder.switches.generation and setup.task.generates:
        return _generate_lanes(setup, rows)
    # generated answers need memory beyond that of a pass: a key-value cache
    generates, c = setup.task.generates, setup.conditions
    most = c.evaluation_batch_size if generates else _batch_rows(setup)
    return retry_with_half(partial(_predict_lanes, setup, rows), most, "predictions")


def _predict_lanes(
    setup: TrainingSetup, rows: Sequence[Row], batch_rows: int
) -> list[list[Answer]]:
    c, lanes = setup.conditions, setup.lanes
    width = min(setup.batch_builder.width, batch_rows)  # the last resort: one lane at a time
    found: list[dict[int, Answer]] = [{} for _ in range(len(lanes))]
    for picked in length_sorted_batches(setup.task, rows, batch_rows // width):
        batch = [rows[i] for i in picked]
        for first in range(0, len(lanes), width):
            beat()
            count = min(width, len(lanes) - first)
            lanes.run_lanes(first, count, setup.task.batch_rows(batch))
            with autocast(c.device, c.precision):
                # the rows once for each lane, lane after lane
                every = predict_batch(
                    setup.task, setup.model, setup.tokenizer, batch * count, c.device
                )
            for lane in range(count):
                answers = every[lane * len(picked) : (lane + 1) * len(picked)]
                found[first + lane].update(zip(picked, answers, strict=True))
    return [[of_lane[i] for i in range(len(rows))] for of_lane in found]


def length_sorted_batches(task: Task, rows: Sequence[Row], most: int) -> Iterator[list[int]]:
    """Yield positions of rows of similar length, in batches of at most ``most`` batch rows."""
    order = sorted(range(len(rows)), key=lambda i: sum(len(str(v)) for v in rows[i].values()))
    # a row may take several batch rows: one for each choice of a multiple-choice item
    share = max(1, most // max(task.batch_rows([row]) for row in rows))
    for start in range(0, len(rows), share):
        yield order[start : start + share]


def _generate_lanes(setup: TrainingSetup, rows: Sequence[Row]) -> list[list[Answer]]:
    request, builder = setup.task.prompts(setup.tokenizer, rows), setup.batch_builder
    switches = builder.switches
    width = builder.width if switches.lane_generation else 1
    tokens = generate_fast_in_lanes(
        setup.lanes, (len(setup.lanes), width), request, setup.conditions, switches.graphs
    )
    return [setup.task.answers(setup.tokenizer, request, of_lane) for of_lane in tokens]


@torch.no_grad()
def check_longest_answer(setup: TrainingSetup, positions: int | None) -> int | None:
    """Run the model on the longest validation prompt with a full-length answer; return its tokens.

    No generated answer needs more memory for its key-value cache. ``positions`` is the longest row
    that the base can read, None without a limit. Returns None if the task generates nothing.
    """
    if not setup.task.generates:
        return None
    setup.model.eval()
    request = setup.task.prompts(setup.tokenizer, setup.rows("validation"))
    prompt = max(request.prompts, key=len)
    tokens = [*prompt, *[prompt[-1]] * (request.max_new_tokens - 1)]
    if positions is not None:
        tokens = tokens[: max(1, positions - setup.virtual_tokens - 1)]
    setup.lanes.run_single(0)
    with autocast(setup.conditions.device, setup.conditions.precision):
        generate_plain(setup.model, request._replace(prompts=[tokens], max_new_tokens=1))
    return len(tokens)


@torch.no_grad()
def score_base(value: dict[str, Any]) -> dict[str, Any]:
    """Score the base model (not fine-tuned) on test; a worker's entry point.

    ``value`` is a segment, of which the conditions and the requested accelerators count; its trials
    are not trained. Returns ``{"scores": SplitScores as JSON, "error": None, "note": ...}``, or no
    scores and an error's text. ``note`` is the reason why plain generation was used although fast
    generation was requested.
    """
    segment = Segment.from_json(value)
    c = segment.trials[0].conditions
    log.info("scoring the base model on test")
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
        if files.disk_full_message(error):
            raise
        message = redact(describe_error(error))
        log.warning("the base model was not scored: %s", message)
        return {"scores": None, "error": message}
    return {"scores": dataclasses.asdict(scores), "error": None, "note": note}


def score_reference_model(
    metric: run.Metric, task: Task, model: Any, tokenizer: Any, rows: Sequence[Row],
    c: Conditions, switches: Switches,
) -> tuple[SplitScores, str | None]:  # fmt: skip
    """Score a plain transformers or PEFT model on test rows.

    Returns the scores, and the reason if fast generation was requested and not used.
    """
    note = None
    if task.generates and not metric.of_losses and switches.generation:
        request, graphs = task.prompts(tokenizer, rows), switches.graphs
        note = generation_mismatch(model, request, c, graphs)
        if note is None:
            answers = task.answers(tokenizer, request, generate_fast(model, request, c, graphs))
            references = task.scored_references(tokenizer, rows)
            scores = metric.score([a.text for a in answers], references, "test")
            return answer_scores(scores, task, answers), None
        log.info("plain generation is used: %s", note)
    score = partial(_score_reference_batches, metric, task, model, tokenizer, rows, c)
    return retry_with_half(score, c.evaluation_batch_size, "the base's scores"), note


def _score_reference_batches(
    metric: run.Metric, task: Task, model: Any, tokenizer: Any, rows: Sequence[Row],
    c: Conditions, most: int,
) -> SplitScores:  # fmt: skip
    """Score a plain model, in batches of similar lengths with at most ``most`` batch rows."""
    if metric.of_losses:
        sums, counts = reference_losses(task, model, tokenizer, rows, c, most)
        scores = metric.score_losses(sums, counts, "test")
        return SplitScores(tuple(scores), (None,) * len(rows), None)
    found: dict[int, Answer] = {}
    for picked in length_sorted_batches(task, rows, most):
        with autocast(c.device, c.precision):
            predicted = predict_batch(task, model, tokenizer, [rows[i] for i in picked], c.device)
        found.update(zip(picked, predicted, strict=True))
    answers = [found[i] for i in range(len(rows))]
    references = task.scored_references(tokenizer, rows)
    scores = metric.score([a.text for a in answers], references, "test")
    return answer_scores(scores, task, answers)


@torch.no_grad()
def reference_losses(
    task: Task, model: Any, tokenizer: Any, rows: Sequence[Row], c: Conditions, most: int
) -> tuple[list[float], list[float]]:
    """Return each row's summed loss in nats and its supervised units, by a plain model's forward.

    The batches are padded, of similar lengths, and have at most ``most`` rows.
    """
    pad = int(tokenizer.pad_token_id or 0)
    sums, counts = [0.0] * len(rows), [0.0] * len(rows)
    for picked in length_sorted_batches(task, rows, most):
        beat()
        batch = task.batch(task.encode(tokenizer, [rows[i] for i in picked]), pad, c.device)
        with autocast(c.device, c.precision):
            losses = task.item_losses(model, batch)
        for i, total, units in zip(picked, *(x.double().tolist() for x in losses), strict=True):
            sums[i], counts[i] = total, units
    return sums, counts
