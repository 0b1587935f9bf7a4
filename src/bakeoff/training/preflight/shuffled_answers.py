"""Train a trial on shuffled answers: its loss must not fall below what guessing allows.

Answers are permuted over the rows, so nothing in a row tells its answer. A model that does not see
the answer has at least the entropy of the answers as its mean loss on held-out rows, whatever it
has learnt: with probabilities q of row i, the mean over permutations of -log q(answer) is at least
that of any distribution that is the same for all rows. Less means that the answer is visible to the
model: a base that attends to later tokens, or a loss on the wrong positions.
"""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from bakeoff.core.errors import first_line
from bakeoff.core.trial import Segment
from bakeoff.data.rows import Row
from bakeoff.tasks._base import IGNORE, Example
from bakeoff.tasks.choice import MultipleChoice
from bakeoff.training.evaluate import summed_losses
from bakeoff.training.setup import TrainingSetup, build_setup, prepare_process

TRAIN_ROWS, HELD_OUT_ROWS = 512, 128
"""Most rows that are trained on, and that the loss is computed on."""
EVERY = 20
"""Steps between two evaluations."""
ENTROPY_SHARE = 0.8
"""Answers are cut to their first tokens while so much of their entropy remains: fewer tokens are
copied sooner."""
ERRORS = 3.0
"""The loss must be so many standard errors below the entropy."""


class Answers(NamedTuple):
    """Examples with shuffled answers, and the smallest mean loss of a model that sees none."""

    examples: list[Example]
    entropy: float


def train_on_shuffled(value: dict[str, Any]) -> dict[str, Any]:
    """Train a trial on shuffled answers; a worker's entry point.

    ``value`` has the ``segment`` of one trial and the number of ``steps``. Returns in nats per
    answer the mean ``loss`` on held-out rows, its ``standard_error`` and the ``entropy`` of the
    answers, with the number of ``steps`` and ``rows``, and ``seen``: whether the answers must have
    been visible. If the trial cannot be trained, ``error_text`` is the reason.
    """
    segment = Segment.from_json(value["segment"])
    (trial,) = segment.trials
    conditions = dataclasses.replace(trial.conditions, steps=value["steps"])
    trial = dataclasses.replace(trial, conditions=conditions)
    prepare_process(conditions)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trials record what libraries warn of
            setup = build_setup([trial], segment.base_path, Path(segment.folder) / "data")
            return _train(setup, value["steps"])
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return {"error_text": first_line(error)}


def _train(setup: TrainingSetup, steps: int) -> dict[str, Any]:
    train = shuffle_answers(setup, "train", TRAIN_ROWS)
    held_out = shuffle_answers(setup, "validation", HELD_OUT_ROWS)
    stepper = setup.stepper()
    batches = setup.batch_builder.training_steps(train.examples, [setup.trials[0].seed])
    result: dict[str, Any] = {}
    for step in range(steps):
        setup.model.train()
        stepper.step(step, next(batches))
        if (step + 1) % EVERY and step + 1 < steps:
            continue
        sums, _ = summed_losses(setup, held_out.examples)
        losses = [float(x) for x in sums[0]]
        error = stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
        result = {
            "loss": fmean(losses),
            "standard_error": error,
            "entropy": held_out.entropy,
            "steps": step + 1,
            "rows": len(losses),
            "seen": fmean(losses) + ERRORS * error < held_out.entropy,
            "error_text": None,
        }
        if result["seen"]:
            break
    return result


def shuffle_answers(setup: TrainingSetup, split: str, most: int) -> Answers:
    """Return examples of a split with their answers permuted; for `choice`, with a random choice.

    Only the first answer of a conversation is used: later turns repeat earlier answers.
    """
    draw = random.Random(f"{split}:{setup.trials[0].seed}")
    if isinstance(setup.task, MultipleChoice):
        rows = setup.rows(split)
        return _random_choices(setup, draw.sample(rows, min(most, len(rows))), draw)
    examples = setup.examples(split)
    picked = draw.sample(list(examples), min(most, len(examples)))
    if setup.task.task_type == "SEQ_CLS":
        prompts = [example.tokens for example in picked]
        answers = [example.labels for example in picked]
        permuted = draw.sample(answers, len(answers))
        joined = [Example(p, a) for p, a in zip(prompts, permuted, strict=True)]
    else:
        parts = [part for example in picked if (part := _first_answer(example)) is not None]
        answers = _cut_answers([answer for _, answer in parts])
        permuted = draw.sample(answers, len(answers))
        limit = setup.task.options["max_length"]
        joined = [_join(p, a, limit) for (p, _), a in zip(parts, permuted, strict=True)]
    return Answers(joined, _entropy(answers))


def _random_choices(setup: TrainingSetup, rows: Sequence[Row], draw: random.Random) -> Answers:
    task: Any = setup.task
    candidates = [task.candidates(setup.tokenizer, row) for row in rows]
    entropy = fmean(math.log(len({example.tokens for example in of_row})) for of_row in candidates)
    return Answers([draw.choice(of_row) for of_row in candidates], entropy)


def _first_answer(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the tokens before the first supervised ones, and those; None without a context."""
    at = [i for i, label in enumerate(example.labels) if label != IGNORE]
    if not at or at[0] == 0:
        return None
    stop = at[0]
    while stop < len(example.labels) and example.labels[stop] != IGNORE:
        stop += 1
    return example.tokens[: at[0]], example.tokens[at[0] : stop]


def _cut_answers(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the first tokens of all answers, as few as tell most of them apart."""
    length, longest = 1, max(map(len, answers), default=1)
    while length < longest:
        cut = [answer[:length] for answer in answers]
        if _entropy(cut) >= ENTROPY_SHARE * _entropy(answers):
            return cut
        length += 1
    return list(answers)


def _join(prompt: tuple[int, ...], answer: tuple[int, ...], limit: int) -> Example:
    prompt = prompt[max(0, len(prompt) + len(answer) - limit) :]
    return Example((*prompt, *answer), (IGNORE,) * len(prompt) + answer)


def _entropy(answers: Sequence[tuple[int, ...]]) -> float:
    """Return the entropy of the answers' distribution, in nats."""
    shares = [n / len(answers) for n in Counter(answers).values()]
    return -sum(share * math.log(share) for share in shares)
