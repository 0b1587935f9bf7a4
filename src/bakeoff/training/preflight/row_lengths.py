"""Count the tokens of a study's rows without a length limit, for a ``max_length`` that is unset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bakeoff.core.worker_log import quiet_libraries
from bakeoff.data.rows import SPLITS, Row, read_rows
from bakeoff.engine.safe_loading import from_pretrained_kwargs
from bakeoff.tasks import task_class
from bakeoff.tasks._base import Example, RowError, Task, load_tokenizer
from bakeoff.training.preflight.parameter_count import Architecture
from bakeoff.training.preflight.token_checks import BaseLimits

POSITION_OFFSET = 16
"""Positions that a base may keep for itself at most; RoBERTa keeps two."""


def count_row_lengths(value: dict[str, Any]) -> dict[str, Any]:
    """Return the token counts of all rows: ``{"rows", "answer", "positions", "new_tokens"}``.

    ``rows`` holds ``[length, number of training rows]`` pairs. ``answer`` is the longest part of a
    row, in any split, that must not be truncated: a completion or a choice. ``new_tokens`` may be
    generated behind a prompt. Rows that the task cannot encode are left out; the check of the
    tokens refuses them.

    Raises:
        PreflightError: the base's files are refused, or the task cannot use the tokenizer.
    """
    transformers_logging.set_verbosity_error()
    path, revision, trusted = value["base_path"], value["revision"], value["trusted"]
    task: Task = task_class(value["task"])(value["options"]).without_length_limit()
    tokenizer = load_tokenizer(path, revision, trusted)
    lengths: Counter[int] = Counter()
    answer = 0
    for split in SPLITS:
        rows = read_rows(Path(value["folder"]) / "data" / f"{split}.jsonl")
        for example, needed in _encode_usable(task, tokenizer, rows):
            answer = max(answer, needed)
            if split == "train":
                lengths[len(example.tokens)] += 1
    new_tokens = 0
    if task.generates:
        new_tokens = task.options.get("max_new_tokens") or answer
    longest = max(lengths, default=0) + new_tokens
    return {
        "rows": sorted(lengths.items()),
        "answer": answer,
        "new_tokens": new_tokens,
        "positions": _positions(task, path, revision, trusted, longest),
    }


def _encode_usable(
    task: Task, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> Iterator[tuple[Example, int]]:
    """Yield each row that the task can encode, with the tokens that must not be truncated."""
    candidates = getattr(task, "candidates", None)
    try:
        examples: Sequence[Example | None] = task.encode(tokenizer, rows)
    except RowError:
        examples = [_try_encode(task, tokenizer, row) for row in rows]
    for row, example in zip(rows, examples, strict=True):
        if example is None:
            continue
        if candidates is None:
            yield example, _last_answer(example)
        else:  # a wrong choice must fit too
            choices = candidates(tokenizer, row)
            longest = max(choices, key=lambda e: len(e.tokens))
            yield longest, max(_last_answer(e) for e in choices)


def _try_encode(task: Task, tokenizer: PreTrainedTokenizerBase, row: Row) -> Example | None:
    try:
        return task.encode(tokenizer, [row])[0]
    except RowError:
        return None


def _last_answer(example: Example) -> int:
    """Return the tokens from the start of the last supervised stretch to the end of the row."""
    labels = example.labels
    if len(labels) != len(example.tokens):
        return 0  # one label for the whole row
    last = next((i for i in range(len(labels) - 1, -1, -1) if labels[i] >= 0), None)
    if last is None:
        return 0
    start = next((i for i in range(last, -1, -1) if labels[i] < 0), -1)
    return len(labels) - start - 1


def _positions(
    task: Task, path: str, revision: str | None, trusted: bool, longest: int
) -> int | None:
    """Return the positions of a base; exact only if a row of ``longest`` tokens comes near them."""
    config = AutoConfig.from_pretrained(path, **from_pretrained_kwargs(path, revision, trusted))
    stated: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if stated is None or longest + POSITION_OFFSET <= stated:
        return stated
    try:
        with quiet_libraries():
            shape = Architecture(config, task.task_type, task.heads)
            return BaseLimits.of(shape.model(None)).positions or stated
    except Exception:  # a base whose code needs its weights; the check of the tokens counts exactly
        return stated
