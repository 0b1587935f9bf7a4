"""Rows as they are trained on, for people: the text of each token, and whether it is learnt.

Asked by ``overview`` through an executor, for `bakeoff plan --show`: a segment whose data is frozen
goes in, its first rows of train come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bakeoff.core.trial import Segment
from bakeoff.data.rows import read_rows
from bakeoff.tasks._base import Example, Task, load_tokenizer
from bakeoff.training.setup import make_task, prepare_process
from bakeoff.training.token_cache import load_or_encode

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for bytes that are no whole character."""
MAX_BYTES = 4
"""UTF-8 takes no more for one character, so that no more tokens share it."""


def preview_rows(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"rows": [...]}``, the first ``value["count"]`` rows of train as plain values.

    A row has its ``position`` in the split, how many ``tokens`` it has, how many are
    ``supervised``, its ``pieces`` and, where it has one answer as a whole, its ``label``.
    """
    segment = Segment.from_json(value["segment"])
    conditions = segment.trials[0].conditions
    prepare_process(conditions)
    task = make_task(conditions)
    tokenizer = load_tokenizer(segment.base_path, conditions.revision, conditions.trusted)
    data = Path(segment.folder) / "data"
    examples = load_or_encode(
        task, tokenizer, data, "train", lambda: read_rows(data / "train.jsonl")
    )[: value["count"]]
    return {"rows": [_row(task, tokenizer, i, e) for i, e in enumerate(examples)]}


def _row(task: Task, tokenizer: Any, position: int, example: Example) -> dict[str, Any]:
    learnt, label = task.supervised_mask(example)
    return {
        "position": position,
        "tokens": len(example.tokens),
        "supervised": sum(learnt),
        "label": label,
        "pieces": [
            {"text": text, "tokens": count, "supervised": flag}
            for text, count, flag in pieces(tokenizer, example.tokens, learnt)
        ],
    }


def pieces(
    tokenizer: Any, ids: Sequence[int], learnt: Sequence[bool]
) -> list[tuple[str, int, bool]]:
    """Return the text of each token, of how many tokens it is, and whether they are learnt.

    A token's text is what it adds behind the token before it, because many tokenizers drop the
    space of one that stands alone. Tokens that are bytes of one character are one piece.
    """
    found, start = [], 0
    for flag, run in groupby(learnt):
        end = start + len(list(run))
        stop = start + 1
        while start < end:
            before = list(ids[max(0, start - 1) : start])
            text = _decode(tokenizer, [*before, *ids[start:stop]])
            text = text.removeprefix(_decode(tokenizer, before))
            if text.endswith(REPLACEMENT) and stop < min(end, start + MAX_BYTES):
                stop += 1
                continue
            found.append((text, stop - start, flag))
            start, stop = stop, stop + 1
    return found


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
