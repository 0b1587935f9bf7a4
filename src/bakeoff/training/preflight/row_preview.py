"""Preview of tokenised rows: the text of each token, and whether it is supervised."""

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
"""Decoded text of bytes that are not a complete character."""
MAX_BYTES = 4
"""Most bytes of a character in UTF-8, and so the most tokens that share one."""


def preview_rows(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"rows": [...], "added": ...}``, the first ``value["count"]`` rows of train.

    A worker's entry point. ``added`` is a sentence on the special tokens that the tokenizer adds,
    or None. A row has its ``position`` in the split, its number of ``tokens``, how
    many are ``supervised``, its ``pieces`` and, if one label applies to the whole row, its
    ``label``.
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
    rows = [_row(task, tokenizer, i, e) for i, e in enumerate(examples)]
    return {"rows": rows, "added": task.added_tokens_text(tokenizer)}


def _row(task: Task, tokenizer: Any, position: int, example: Example) -> dict[str, Any]:
    supervised, label = task.supervised_mask(example)
    return {
        "position": position,
        "tokens": len(example.tokens),
        "supervised": sum(supervised),
        "label": label,
        "pieces": [
            {"text": text, "tokens": count, "supervised": flag}
            for text, count, flag in pieces(tokenizer, example.tokens, supervised)
        ],
    }


def pieces(
    tokenizer: Any, ids: Sequence[int], supervised: Sequence[bool]
) -> list[tuple[str, int, bool]]:
    """Return pieces of text, with the number of tokens in each and whether they are supervised.

    A token's text is what it adds to the token before it: many tokenizers drop the leading space of
    a single token. Tokens that are bytes of one character form one piece.
    """
    parts, start = [], 0
    for flag, run in groupby(supervised):
        end = start + len(list(run))
        stop = start + 1
        while start < end:
            before = list(ids[max(0, start - 1) : start])
            text = _decode(tokenizer, [*before, *ids[start:stop]])
            text = text.removeprefix(_decode(tokenizer, before))
            if text.endswith(REPLACEMENT) and stop < min(end, start + MAX_BYTES):
                stop += 1
                continue
            parts.append((text, stop - start, flag))
            start, stop = stop, stop + 1
    return parts


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
