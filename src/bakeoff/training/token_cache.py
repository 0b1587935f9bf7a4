"""Token cache of a study: each split is tokenised once, for all of its processes.

One safetensors file per split in ``tokens/``. Its name is a hash of all that determines the tokens:
data, tokenizer and task options. Files are renamed into place, so readers see complete ones only.
A process keeps the examples of small files, since each segment needs the same ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from safetensors.numpy import load_file, save_file

from bakeoff.core.files import atomic_path, sha256_of
from bakeoff.data.rows import Row
from bakeoff.tasks._base import Example, Task

FOLDER = "tokens"
KEPT_BYTES = 16 << 20
"""Largest file whose examples are kept in memory: they take ten times as much there."""


def load_or_encode(
    task: Task, tokenizer: Any, data: Path, split: str, rows: Callable[[], Sequence[Row]]
) -> list[Example]:
    """Return the examples of a split of the frozen ``data``; tokenise it if it is not cached."""
    path = _path(task, tokenizer, data, split)
    if path.exists():
        small = path.stat().st_size <= KEPT_BYTES
        return list(_read_once(path) if small else _read(path))
    examples = task.encode(tokenizer, rows())
    _write(path, examples)
    return examples


def store(task: Task, tokenizer: Any, data: Path, split: str, examples: Sequence[Example]) -> None:
    """Store the examples of a split of the frozen ``data`` for ``load_or_encode``."""
    path = _path(task, tokenizer, data, split)
    if not path.exists():
        _write(path, examples)


def _path(task: Task, tokenizer: Any, data: Path, split: str) -> Path:
    # the task's class name is part of the key: renaming the class makes every cache file stale
    key = {
        "data": sha256_of(data / f"{split}.jsonl"),
        "task": type(task).__name__,
        "options": task.options,
        "tokenizer": hashlib.sha256(_description(tokenizer).encode()).hexdigest(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return data.parent / FOLDER / f"{split}-{name}.safetensors"


def _description(tokenizer: Any) -> str:
    if tokenizer not in _vocabularies:  # 3 MB of JSON, for each split of each segment
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
        _vocabularies[tokenizer] = text
    text = _vocabularies[tokenizer]
    chat = getattr(tokenizer, "chat_template", None)
    return f"{type(tokenizer).__name__} {tokenizer.special_tokens_map} {chat} {text}"


_vocabularies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""What each loaded tokenizer does to a text, as JSON."""


def _write(path: Path, examples: Sequence[Example]) -> None:
    path.parent.mkdir(exist_ok=True)
    arrays = {
        "tokens": _concatenate([e.tokens for e in examples]),
        "labels": _concatenate([e.labels for e in examples]),
        "token_counts": np.array([len(e.tokens) for e in examples]),
        "label_counts": np.array([len(e.labels) for e in examples]),
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)


def _concatenate(rows: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)


def _read(path: Path) -> list[Example]:
    arrays = load_file(path)
    tokens = _split_rows(arrays["tokens"], arrays["token_counts"])
    labels = _split_rows(arrays["labels"], arrays["label_counts"])
    return [Example(t, y) for t, y in zip(tokens, labels, strict=True)]


# the name of a file says what is in it, and three are the splits of a study
_read_once = functools.lru_cache(maxsize=3)(_read)


def _split_rows(flat: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> list[tuple[int, ...]]:
    values, ends = flat.tolist(), np.cumsum(counts).tolist()
    return [tuple(values[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
